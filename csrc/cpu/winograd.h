// Convolutions 3 x 3 with 16 multiplications instead of 36: Winograd's minimal filtering
// F(2 x 2, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, section 4).
//
// A tile of 2 x 2 output pixels depends on 4 x 4 of the input. Both are transformed by additions; between them each of
// the 16 places of a tile is a matrix product of its own: (tiles x channels) times (channels x filters).
#pragma once

#include <algorithm>

#include "../check.h"
#include "../layout.h"
#include "../macros.h"

namespace stadfast::cpu {

constexpr int64_t kSide = 4, kPlaces = kSide * kSide;  // of a tile of the input
constexpr int64_t kPanel = 16;                         // filters side by side
constexpr int64_t kTogether = 6;                       // tiles whose sums fill the registers
constexpr int kL2Cache = 2;                            // as __builtin_prefetch calls it

// Sizes and memory, in elements. Channels are those of one group, filters those of all.
template <class T>
struct Winograd {
  int64_t groups, channels, filters, rows_above, columns_left;
  Layout in, out, added;
  const T *input, *weights, *residual;
  const float* bias;
  T* output;
  bool rectify;

  int64_t tile_columns() const { return (out.width + 1) / 2; }
  int64_t tiles() const { return tile_columns() * ((out.height + 1) / 2); }  // of an image
};

// Tiles and filters of a group that a thread takes at once, and its memory: zeros for a pixel, transformed tiles
// (place, tile, channel), products (place, tile, filter).
template <class T>
struct TileBlock {
  int64_t first, count, first_filter, last_filter;
  const T* zeros;
  T* values;
  float* products;

  int64_t room() const { return (count + kTogether - 1) / kTogether * kTogether; }
  int64_t filters() const { return last_filter - first_filter; }
};

// The first pixel of a tile's output.
struct Pixel {
  int64_t image, row, column;
};

template <class T>
Pixel pixel_of(const Winograd<T>& c, int64_t tile) {
  const int64_t inside = tile % c.tiles(), columns = c.tile_columns();
  return {tile / c.tiles(), inside / columns * 2, inside % columns * 2};
}

// The channels of a block's group at the pixels under a tile's windows.
template <class T>
void find_pixels(const Winograd<T>& c, const TileBlock<T>& block, int64_t tile, const T** pixels) {
  const Pixel at = pixel_of(c, block.first + tile);
  const int64_t first_channel = block.first_filter / (c.filters / c.groups) * c.channels;
  const T* input = c.input + at.image * c.in.batch_stride + first_channel;
  for (int64_t i = 0; i < kPlaces; ++i) {
    const int64_t row = at.row + i / kSide - c.rows_above, column = at.column + i % kSide - c.columns_left;
    const bool inside = row >= 0 && row < c.in.height && column >= 0 && column < c.in.width;
    pixels[i] = inside ? input + (row * c.in.width + column) * c.in.pixel_stride : block.zeros;
  }
}

// A block's weights at one place, from a filter on. Behind the block's last are those of the next place, and behind all
// the first, which the next block begins with.
template <class T>
const T* weights_of(const Winograd<T>& c, const TileBlock<T>& block, int64_t place, int64_t filter) {
  if (filter >= block.filters()) place = (place + 1) % kPlaces, filter = 0;
  return c.weights + (place * c.filters + block.first_filter + filter) * c.channels;
}

// N floats, wherever they lie. In a class, since gcc forgets the attributes of an alias of its own.
template <int N>
struct Register {
  typedef float Floats __attribute__((vector_size(4 * N), aligned(4), may_alias));
};
template <int N>
using Floats = typename Register<N>::Floats;

// References, since a function that returned registers would depend on the processor.
template <int N>
SF_INLINE const Floats<N>& floats(const float* at) {
  return *reinterpret_cast<const Floats<N>*>(at);
}

template <int N>
SF_INLINE Floats<N>& floats(float* at) {
  return *reinterpret_cast<Floats<N>*>(at);
}

// Four values along one side of a tile, transformed.
template <class V>
SF_INLINE void transform(const V& a, const V& b, const V& c, const V& d, V& p, V& q, V& r, V& s) {
  p = a - c, q = b + c, r = c - b, s = b - d;
}

// Four products along one side, transformed back to two sums.
template <class V>
SF_INLINE void transform_back(const V& a, const V& b, const V& c, const V& d, V& first, V& second) {
  first = a + b + c, second = b - c - d;
}

template <int N>
SF_INLINE void transform_input(const Winograd<float>& c, const TileBlock<float>& block, int64_t tile) {
  const float* pixels[kPlaces];
  find_pixels(c, block, tile, pixels);
  const int64_t place = block.room() * c.channels;
  float* to = block.values + tile * c.channels;
  for (int64_t k = 0; k < c.channels; k += N, to += N) {
    Floats<N> columns[kSide][kSide];
#pragma GCC unroll 4
    for (int x = 0; x < kSide; ++x) {
      const Floats<N> a = floats<N>(pixels[x] + k), b = floats<N>(pixels[4 + x] + k);
      const Floats<N> c = floats<N>(pixels[8 + x] + k), d = floats<N>(pixels[12 + x] + k);
      transform(a, b, c, d, columns[0][x], columns[1][x], columns[2][x], columns[3][x]);
    }
#pragma GCC unroll 4
    for (int y = 0; y < kSide; ++y) {
      const Floats<N>* row = columns[y];
      Floats<N> p, q, r, s;
      transform(row[0], row[1], row[2], row[3], p, q, r, s);
      floats<N>(to + 4 * y * place) = p;
      floats<N>(to + (4 * y + 1) * place) = q;
      floats<N>(to + (4 * y + 2) * place) = r;
      floats<N>(to + (4 * y + 3) * place) = s;
    }
  }
}

// kTogether tiles by kVectors times N filters at one place; `panel`: from one panel of filters to the next; `next`: a
// panel to fetch meanwhile.
template <int N, int kVectors>
SF_INLINE void multiply(const float* values, const float* weights, int64_t channels, int64_t panel, float* products,
                        int64_t filters, const float* next) {
  Floats<N> sums[kTogether][kVectors] = {};
  for (int64_t k = 0; k < channels; ++k, weights += kPanel, next += kPanel) {
    __builtin_prefetch(next, 0, kL2Cache);
    Floats<N> row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = floats<N>(weights + j * N / kPanel * panel + j * N % kPanel);
#pragma GCC unroll 6
    for (int i = 0; i < kTogether; ++i) {
      const float value = values[i * channels + k];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += value * row[j];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) floats<N>(products + i * filters + j * N) = sums[i][j];
}

// All tiles of a block by kVectors times N filters, of which `filter` is the first. A layer's weights come from memory
// as often as not, and the first tiles would wait for them: the panels that follow are fetched ahead, one for each few
// tiles.
template <int N, int kVectors>
SF_INLINE void multiply_tiles(const Winograd<float>& c, const TileBlock<float>& block, int64_t place, int64_t filter) {
  constexpr int kPanels = kVectors * N / kPanel;
  const int64_t panel = kPanel * c.channels;
  const float* weights = weights_of(c, block, place, filter);
  const float* next = weights_of(c, block, place, filter + kVectors * N);
  for (int64_t i = 0, at = place * block.room(); i < block.count; i += kTogether, at += kTogether)
    multiply<N, kVectors>(block.values + at * c.channels, weights, c.channels, panel,
                          block.products + at * block.filters() + filter, block.filters(),
                          next + i / kTogether % kPanels * panel);
}

// The products' transform, + bias, + residual, rectified.
template <int N>
SF_INLINE void transform_output(const Winograd<float>& c, const TileBlock<float>& block, int64_t tile) {
  const Pixel at = pixel_of(c, block.first + tile);
  const int64_t place = block.room() * block.filters(), pixel = at.row * c.out.width + at.column;
  const int64_t rows = std::min<int64_t>(2, c.out.height - at.row);
  const int64_t columns = std::min<int64_t>(2, c.out.width - at.column);
  for (int64_t f = 0; f < block.filters(); f += N) {
    const float* from = block.products + tile * block.filters() + f;
    Floats<N> sums[2][kSide];
#pragma GCC unroll 4
    for (int x = 0; x < kSide; ++x, from += place) {
      const Floats<N> a = floats<N>(from), b = floats<N>(from + 4 * place);
      const Floats<N> c = floats<N>(from + 8 * place), d = floats<N>(from + 12 * place);
      transform_back(a, b, c, d, sums[0][x], sums[1][x]);
    }
    const int64_t filter = block.first_filter + f;
    const Floats<N> bias = floats<N>(c.bias + filter), zero = {};
    for (int64_t y = 0; y < rows; ++y) {
      const Floats<N>* row = sums[y];
      Floats<N> pair[2];
      transform_back(row[0], row[1], row[2], row[3], pair[0], pair[1]);
      for (int64_t x = 0; x < columns; ++x) {
        const int64_t to = pixel + y * c.out.width + x;
        Floats<N> value = pair[x] + bias;
        if (c.residual)
          value += floats<N>(c.residual + at.image * c.added.batch_stride + to * c.added.pixel_stride + filter);
        if (c.rectify) value = value < 0.f ? zero : value;  // a NaN stays one
        floats<N>(c.output + at.image * c.out.batch_stride + to * c.out.pixel_stride + filter) = value;
      }
    }
  }
}

// N: floats of a register; kWide: registers with filters, of which there are more in newer processors.
template <int N, int kWide>
SF_INLINE void convolve_block(const Winograd<float>& c, const TileBlock<float>& block) {
  for (int64_t i = 0; i < block.count; ++i) transform_input<N>(c, block, i);
  for (int64_t place = 0; place < kPlaces; ++place) {
    int64_t f = 0;
    for (; f + kWide * N <= block.filters(); f += kWide * N) multiply_tiles<N, kWide>(c, block, place, f);
    for (; f < block.filters(); f += kPanel) multiply_tiles<N, kPanel / N>(c, block, place, f);
  }
  for (int64_t i = 0; i < block.count; ++i) transform_output<N>(c, block, i);
}

inline void plain_block(const Winograd<float>& c, const TileBlock<float>& block) { convolve_block<8, 2>(c, block); }

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2,fma"))) inline void avx2_block(const Winograd<float>& c, const TileBlock<float>& block) {
  convolve_block<8, 2>(c, block);
}

__attribute__((target("avx512f,avx512vl,fma"))) inline void avx512_block(const Winograd<float>& c,
                                                                         const TileBlock<float>& block) {
  convolve_block<16, 4>(c, block);
}

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
}

inline auto fastest_block() { return has_avx512() ? avx512_block : has_avx2() ? avx2_block : plain_block; }
#else
inline auto fastest_block() { return plain_block; }
#endif

}  // namespace stadfast::cpu
