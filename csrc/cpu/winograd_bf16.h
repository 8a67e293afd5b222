// Winograd's convolution of bfloat16 features, for processors that multiply bfloat16 by vectors only: on the matrix
// units (AMX) the plain sums of convolve.h are faster. Transforms are float32, what is multiplied is rounded to
// bfloat16.
#pragma once

#include <cstring>

#include "tiles.h"
#include "winograd.h"

#ifdef SF_TILES
namespace stadfast::cpu {

SF_TILED inline __m512 load(const uint16_t* values) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

SF_TILED inline void store(uint16_t* to, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}

SF_TILED inline void transform_input(const Winograd<uint16_t>& c, const TileBlock<uint16_t>& block, int64_t tile) {
  const uint16_t* pixels[kPlaces];
  find_pixels(c, block, tile, pixels);
  const int64_t place = block.room() * c.channels;
  uint16_t* to = block.values + tile * c.channels;
  for (int64_t k = 0; k < c.channels; k += kPanel, to += kPanel) {
    __m512 columns[kSide][kSide];
#pragma GCC unroll 4
    for (int x = 0; x < kSide; ++x)
      transform(load(pixels[x] + k), load(pixels[4 + x] + k), load(pixels[8 + x] + k), load(pixels[12 + x] + k),
                columns[0][x], columns[1][x], columns[2][x], columns[3][x]);
#pragma GCC unroll 4
    for (int y = 0; y < kSide; ++y) {
      const __m512* row = columns[y];
      __m512 p, q, r, s;
      transform(row[0], row[1], row[2], row[3], p, q, r, s);
      store(to + 4 * y * place, p);
      store(to + (4 * y + 1) * place, q);
      store(to + (4 * y + 2) * place, r);
      store(to + (4 * y + 3) * place, s);
    }
  }
}

// kTogether tiles by kPanels panels of filters at one place; `panel`: from one of these to the next; `next`: one to
// fetch meanwhile.
template <int kPanels>
SF_TILED inline void multiply(const uint16_t* values, const uint16_t* weights, int64_t channels, int64_t panel,
                              float* products, int64_t filters, const uint16_t* next) {
  __m512 sums[kTogether][kPanels];
#pragma GCC unroll 6
  for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kPanels; ++j) sums[i][j] = _mm512_setzero_ps();
  for (int64_t k = 0; k < channels; k += 2, weights += 2 * kPanel, next += 2 * kPanel) {  // pairs of channels
    __builtin_prefetch(next, 0, kL2Cache);
    __m512bh row[kPanels];
#pragma GCC unroll 4
    for (int j = 0; j < kPanels; ++j) row[j] = (__m512bh)_mm512_loadu_si512(weights + j * panel);
#pragma GCC unroll 6
    for (int i = 0; i < kTogether; ++i) {
      int32_t both;
      std::memcpy(&both, values + i * channels + k, sizeof(both));
      const auto value = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
      for (int j = 0; j < kPanels; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], value, row[j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kPanels; ++j) _mm512_storeu_ps(products + i * filters + j * kPanel, sums[i][j]);
}

// All tiles of a block by kPanels panels, of which `filter` is the first.
template <int kPanels>
SF_TILED inline void multiply_tiles(const Winograd<uint16_t>& c, const TileBlock<uint16_t>& block, int64_t place,
                                    int64_t filter) {
  const int64_t panel = kPanel * c.channels;
  const uint16_t* weights = weights_of(c, block, place, filter);
  const uint16_t* next = weights_of(c, block, place, filter + kPanels * kPanel);
  for (int64_t i = 0, at = place * block.room(); i < block.count; i += kTogether, at += kTogether)
    multiply<kPanels>(block.values + at * c.channels, weights, c.channels, panel,
                      block.products + at * block.filters() + filter, block.filters(),
                      next + i / kTogether % kPanels * panel);
}

// The products' transform, + bias, + residual, rectified, rounded.
SF_TILED inline void transform_output(const Winograd<uint16_t>& c, const TileBlock<uint16_t>& block, int64_t tile) {
  const Pixel at = pixel_of(c, block.first + tile);
  const int64_t place = block.room() * block.filters(), pixel = at.row * c.out.width + at.column;
  const int64_t rows = std::min<int64_t>(2, c.out.height - at.row);
  const int64_t columns = std::min<int64_t>(2, c.out.width - at.column);
  const __m512 zero = _mm512_setzero_ps();
  for (int64_t f = 0; f < block.filters(); f += kPanel) {
    const float* from = block.products + tile * block.filters() + f;
    __m512 sums[2][kSide];
#pragma GCC unroll 4
    for (int x = 0; x < kSide; ++x, from += place)
      transform_back(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 4 * place), _mm512_loadu_ps(from + 8 * place),
                     _mm512_loadu_ps(from + 12 * place), sums[0][x], sums[1][x]);
    const int64_t filter = block.first_filter + f;
    const __m512 bias = _mm512_loadu_ps(c.bias + filter);
    for (int64_t y = 0; y < rows; ++y) {
      const __m512* row = sums[y];
      __m512 pair[2];
      transform_back(row[0], row[1], row[2], row[3], pair[0], pair[1]);
      for (int64_t x = 0; x < columns; ++x) {
        const int64_t to = pixel + y * c.out.width + x;
        __m512 value = pair[x] + bias;
        if (c.residual)
          value += load(c.residual + at.image * c.added.batch_stride + to * c.added.pixel_stride + filter);
        if (c.rectify) value = _mm512_max_ps(zero, value);  // in this order a NaN stays one
        store(c.output + at.image * c.out.batch_stride + to * c.out.pixel_stride + filter, value);
      }
    }
  }
}

SF_TILED inline void narrow_block(const Winograd<uint16_t>& c, const TileBlock<uint16_t>& block) {
  constexpr int kWide = 4;  // panels whose sums, with kTogether tiles, fill the registers
  for (int64_t i = 0; i < block.count; ++i) transform_input(c, block, i);
  for (int64_t place = 0; place < kPlaces; ++place) {
    int64_t f = 0;
    for (; f + kWide * kPanel <= block.filters(); f += kWide * kPanel) multiply_tiles<kWide>(c, block, place, f);
    for (; f < block.filters(); f += kPanel) multiply_tiles<1>(c, block, place, f);
  }
  for (int64_t i = 0; i < block.count; ++i) transform_output(c, block, i);
}

}  // namespace stadfast::cpu
#endif
