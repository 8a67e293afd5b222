// Convolution of bfloat16 features, bias, addition and rectifier in one pass: one row of the output.
//
// 32 pixels by 32 channels at a time. Rows are copied first, with their padding and the channels of one group side by
// side: then the values under a row of the window are neighbours, those of the next pixel begin one stride further,
// and a tile of 16 pixels by 32 values is read as it lies there, overlaps and all.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../check.h"
#include "../layout.h"
#include "tiles.h"

namespace stadfast::cpu {

constexpr int64_t kTile = 16, kDepth = 32, kChannels = 32;  // pixels of a tile, values of each; channels of a block
constexpr int64_t kFilterBlock = kDepth * kChannels, kBytes = sizeof(uint16_t);
constexpr int64_t kMaxWindows = 32;        // rows that two tiles of pixels see
constexpr int64_t kManyFilters = 1 << 20;  // bytes that leave no room for features in a core's L2 cache
constexpr double kGrain = 2e6;             // multiplications below which a second thread costs more than it brings

// Sizes and memory, in elements. Channels and filters are those of one group.
struct Convolution {
  int64_t groups, channels, filters, kernel_rows, kernel_columns, stride, rows_above, columns_left;
  Layout in, out, added;
  const uint16_t *input, *weights, *residual;
  const float* bias;
  bool rectify, row_by_row;

  // Values under a row of the window, in steps of 32; what is beyond them meets zeros among the filters.
  int64_t depth() const { return (kernel_columns * channels + kDepth - 1) / kDepth; }
  int64_t tiles_of_row() const { return (out.width + kTile - 1) / kTile; }
  // Whether tiles can be read from the features: a window is a pixel, and none reaches beyond the row.
  bool direct() const {
    return kernel_rows == 1 && kernel_columns == 1 && columns_left == 0 && rows_above == 0 && channels % kDepth == 0 &&
           (tiles_of_row() * kTile - 1) * stride < in.width;
  }
  const uint16_t* input_row(int64_t image, int64_t row, int64_t group) const {
    return input + image * in.batch_stride + row * in.width * in.pixel_stride + group * channels;
  }
  const uint16_t* residual_row(int64_t image, int64_t row) const {
    return residual ? residual + image * added.batch_stride + row * out.width * added.pixel_stride : nullptr;
  }
  // The second of two tiles is the next in the row, or where a row has one only, that of the next row.
  int64_t rows_at_once() const { return tiles_of_row() == 1 && !row_by_row ? 2 : 1; }
  int64_t rows_seen() const { return kernel_rows + (rows_at_once() - 1) * stride; }
};

inline bool is_features(const Tensor& x) { return x.dim() == 4 && x.scalar_type() == ScalarType::BFloat16; }

// What is convolved, but for memory of features.
inline Convolution prepare(const Layout& in, const Tensor& filters, const Tensor& bias,
                           const std::vector<int64_t>& kernel, int64_t stride, const std::vector<int64_t>& padding,
                           int64_t groups, bool rectify) {
  Convolution c{};
  SF_CHECK(kernel.size() == 2 && padding.size() == 2 && within(1, groups) && within(1, stride) &&
               within(1, kernel[0]) && within(1, kernel[1]) && within(0, padding[0]) && within(0, padding[1]),
           "expected two kernel sizes, a stride, two paddings, and groups");
  SF_CHECK(kernel[0] + stride <= kMaxWindows, "expected kernel rows and stride of at most 32 together");
  c.in = in, c.groups = groups, c.channels = in.channels / groups, c.filters = bias.numel() / groups;
  c.kernel_rows = kernel[0], c.kernel_columns = kernel[1], c.stride = stride;
  c.rows_above = padding[0], c.columns_left = padding[1], c.rectify = rectify;
  SF_CHECK(in.channels == c.channels * groups && bias.numel() == c.filters * groups && c.filters > 0 &&
               c.filters % kChannels == 0 && (c.channels % kDepth == 0 || groups == 1),
           "expected multiples of 32 channels out of and into each group, or a single group");
  SF_CHECK(c.channels > 0 && in.height + 2 * padding[0] >= kernel[0] && in.width + 2 * padding[1] >= kernel[1] &&
               in.height < kMaxExtent && in.width < kMaxExtent && in.channels < kMaxExtent,
           "the window is larger than the padded input, or something is too large");
  SF_CHECK(bias.scalar_type() == ScalarType::Float && bias.is_contiguous(),
           "expected a float32 bias for every output channel");
  SF_CHECK(filters.scalar_type() == ScalarType::BFloat16 && filters.is_contiguous() &&
               filters.numel() == bias.numel() * c.kernel_rows * c.depth() * kDepth,
           "expected filters as pack_filters gives them");
  c.out.batch = in.batch, c.out.channels = bias.numel();
  c.out.height = (in.height + 2 * padding[0] - kernel[0]) / stride + 1;
  c.out.width = (in.width + 2 * padding[1] - kernel[1]) / stride + 1;
  c.weights = static_cast<const uint16_t*>(filters.const_data_ptr());
  c.bias = static_cast<const float*>(bias.const_data_ptr());
  return c;
}

// The same with its input, which is replaced by a copy where its layout asks for one.
inline Convolution prepare(Tensor& input, const Tensor& filters, const Tensor& bias, const std::vector<int64_t>& kernel,
                           int64_t stride, const std::vector<int64_t>& padding, int64_t groups, bool rectify) {
  SF_CHECK(is_features(input), "expected an input (B, C, H, W), bfloat16");
  Layout in;
  input = interleaved(input, &in, groups == 1 && input.size(1) % kDepth != 0);
  Convolution c = prepare(in, filters, bias, kernel, stride, padding, groups, rectify);
  c.input = static_cast<const uint16_t*>(input.const_data_ptr());
  return c;
}

// The body, on a processor that multiplies bfloat16; an error in words anywhere else.
#ifdef SF_TILES
#define SF_IF_BF16(OP, ...)                                                                          \
  do {                                                                                               \
    SF_CHECK(bf16_available(), OP ": this processor does not multiply bfloat16 (AMX, AVX512-BF16)"); \
    __VA_ARGS__                                                                                      \
  } while (false)
#else
#define SF_IF_BF16(OP, ...) SF_CHECK(false, OP ": compiled without bfloat16 products (AMX, AVX512-BF16)")
#endif

#ifdef SF_TILES

// Two tiles of pixels: where in the rows under their windows each begins, the second so many rows below; from pixel to
// pixel; how many pixels of each are wanted.
struct Tiles {
  const uint16_t* const* windows;
  int64_t first, second, second_row, step, pixels[2];
};

// Two tiles of pixels by 32 channels: the sum over the window and its channels of values times filters.
SF_TILED inline void multiply_tiles(const Convolution& c, const Tiles& tiles, const uint16_t* filters, float* sums) {
  const int64_t pixel = tiles.step * kBytes, length = c.depth() * kDepth;
  SF_FENCE;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t row = 0; row < c.kernel_rows; ++row) {
    const uint16_t *a = tiles.windows[row] + tiles.first, *b = tiles.windows[row + tiles.second_row] + tiles.second;
    for (int64_t i = 0; i < length; i += kDepth, filters += kFilterBlock) {
      _tile_stream_loadd(6, filters, 64);  // past the L1 cache, which the rows need
      _tile_stream_loadd(7, filters + kFilterBlock / 2, 64);
      _tile_loadd(4, a + i, pixel);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, b + i, pixel);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  constexpr int64_t kRowBytes = kChannels * sizeof(float);
  _tile_stored(0, sums, kRowBytes);
  _tile_stored(1, sums + kTile, kRowBytes);
  _tile_stored(2, sums + kTile * kChannels, kRowBytes);
  _tile_stored(3, sums + kTile * kChannels + kTile, kRowBytes);
  SF_FENCE;
}

// The same without matrix units: eight pixels at a time, as many as there are registers for sums and their latency.
SF_TILED inline void multiply_vectors(const Convolution& c, const Tiles& tiles, const uint16_t* filters, float* sums) {
  constexpr int64_t kPixels = 8, kHalf = kFilterBlock / 2, kPairs = kDepth / 2;
  const int64_t all_pairs = (c.kernel_columns * c.channels + 1) / 2;  // of values under a row of the window
  for (int64_t tile = 0; tile < 2; ++tile)
    for (int64_t x = 0; x < tiles.pixels[tile]; x += kPixels) {
      __m512 low[kPixels], high[kPixels];
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) low[i] = high[i] = _mm512_setzero_ps();
      const uint16_t* block = filters;
      for (int64_t row = 0; row < c.kernel_rows; ++row) {
        const uint16_t* values = tiles.windows[row + tile * tiles.second_row] + x * tiles.step;
        values += tile ? tiles.second : tiles.first;
        for (int64_t left = all_pairs; left > 0; left -= kPairs, values += kDepth, block += kFilterBlock)
          for (int64_t pair = 0; pair < std::min(left, kPairs); ++pair) {
            const auto a = (__m512bh)_mm512_loadu_si512(block + pair * kDepth);
            const auto b = (__m512bh)_mm512_loadu_si512(block + kHalf + pair * kDepth);
#pragma GCC unroll 8
            for (int i = 0; i < kPixels; ++i) {
              int32_t both;
              std::memcpy(&both, values + i * tiles.step + 2 * pair, sizeof(both));
              const auto value = (__m512bh)_mm512_set1_epi32(both);
              low[i] = _mm512_dpbf16_ps(low[i], value, a);
              high[i] = _mm512_dpbf16_ps(high[i], value, b);
            }
          }
      }
      float* to = sums + (tile * kTile + x) * kChannels;
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i, to += kChannels) {
        _mm512_store_ps(to, low[i]);
        _mm512_store_ps(to + kTile, high[i]);
      }
    }
}

// sums + bias, + residual, rectified, rounded.
SF_TILED inline void finish(const Convolution& c, const float* sums, int64_t pixels, const float* bias,
                            const uint16_t* residual, uint16_t* output) {
  const __m512 low = _mm512_loadu_ps(bias), high = _mm512_loadu_ps(bias + kTile), zero = _mm512_setzero_ps();
  for (int64_t i = 0; i < pixels; ++i) {
    __m512 a = _mm512_add_ps(_mm512_load_ps(sums + i * kChannels), low);
    __m512 b = _mm512_add_ps(_mm512_load_ps(sums + i * kChannels + kTile), high);
    if (residual) {
      const __m512i halves = _mm512_loadu_si512(residual + i * c.added.pixel_stride);
      a = _mm512_add_ps(a, widen(_mm512_castsi512_si256(halves)));
      b = _mm512_add_ps(b, widen(_mm512_extracti64x4_epi64(halves, 1)));
    }
    if (c.rectify) {
      a = _mm512_max_ps(zero, a);  // in this order a NaN stays one
      b = _mm512_max_ps(zero, b);
    }
    _mm512_storeu_si512(output + i * c.out.pixel_stride, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
}

// One thread's copy of the last rows of an image's groups, unless tiles read the features themselves; row r lies in
// slot (r + rows_above) % rows_seen. A thread with two of them gives the second another `place` in memory.
class Rows {
 public:
  explicit Rows(const Convolution& c, int place = 0) : c_(c), known_(c.groups) {
    const int64_t seen = (c.tiles_of_row() * kTile - 1) * c.stride * c.channels + c.depth() * kDepth;
    length_ = std::max(seen, (c.in.width + c.columns_left) * c.channels);
    length_ = (length_ + kDepth - 1) / kDepth * kDepth;
    static thread_local std::vector<uint16_t> memory[2];
    auto& values = memory[place];
    const size_t wanted = size_t(c.groups * c.rows_seen() * length_ + kDepth);
    if (values.size() < wanted) values.resize(wanted);
    first_ = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(values.data()) + 63) / 64 * 64);
  }

  // The rows under the windows of an output row (and the one behind it, where two are computed at once).
  SF_TILED const uint16_t* const* read(int64_t image, int64_t group, int64_t out_row) {
    const int64_t top = out_row * c_.stride - c_.rows_above, end = top + c_.rows_seen();
    if (c_.direct()) {
      for (int64_t row = top; row < end; ++row)
        found_[row - top] = c_.input_row(image, std::min(row, c_.in.height - 1), group);
      return found_;
    }
    Known& known = known_[group];
    if (image != known.image || end < known.next) known = {image, top};
    for (int64_t row = top; row < end; ++row) found_[row - top] = slot(group, row);
    for (int64_t row = std::max(known.next, top); row < end; ++row) copy(image, group, row);
    known.next = end;
    return found_;
  }

 private:
  struct Known {
    int64_t image = -1, next = 0;  // rows before it have been copied
  };

  uint16_t* slot(int64_t group, int64_t row) const {
    return first_ + (group * c_.rows_seen() + (row + c_.rows_above) % c_.rows_seen()) * length_;
  }

  SF_TILED void copy(int64_t image, int64_t group, int64_t row) const {
    uint16_t* to = slot(group, row);
    if (row < 0 || row >= c_.in.height) {
      std::memset(to, 0, length_ * kBytes);
      return;
    }
    const uint16_t* end = to + length_;
    const uint16_t* from = c_.input_row(image, row, group);
    std::memset(to, 0, c_.columns_left * c_.channels * kBytes);
    to += c_.columns_left * c_.channels;
    if (c_.in.pixel_stride == c_.channels || c_.in.width == 1) {
      std::memcpy(to, from, c_.in.width * c_.channels * kBytes);
      to += c_.in.width * c_.channels;
    } else {
      for (int64_t x = 0; x < c_.in.width; ++x, to += c_.channels, from += c_.in.pixel_stride)
        for (int64_t i = 0; i < c_.channels; i += kDepth) _mm512_store_si512(to + i, _mm512_loadu_si512(from + i));
    }
    std::memset(to, 0, (end - to) * kBytes);
  }

  const Convolution& c_;
  std::vector<Known> known_;
  const uint16_t* found_[kMaxWindows];
  int64_t length_;
  uint16_t* first_;
};

// What is computed at once. `windows`: the rows under them; `residual` (or null), `output`: of the first filter at the
// row's first pixel.
struct Work {
  int64_t row, first_filter, last_filter;
  const uint16_t* const* windows;
  const uint16_t* residual;
  uint16_t* output;
};

SF_TILED inline void convolve_row(const Convolution& c, const Work& work) {
  alignas(64) float sums[2 * kTile * kChannels];
  const bool amx = amx_available(), two_rows = c.rows_at_once() == 2;
  const int64_t step = c.stride * (c.direct() ? c.in.pixel_stride : c.channels);  // from pixel to pixel
  const int64_t block = c.kernel_rows * c.depth() * kFilterBlock;
  Tiles tiles{work.windows, 0, 0, two_rows ? c.stride : 0, step, {}};
  for (int64_t x = 0; x < c.out.width; x += 2 * kTile) {
    const auto column = [&](int64_t tile) { return x + (two_rows ? 0 : tile * kTile); };
    const auto behind = [&](int64_t tile) { return two_rows ? tile : 0; };
    for (int64_t i = 0; i < 2; ++i)
      tiles.pixels[i] =
          work.row + behind(i) < c.out.height ? std::clamp<int64_t>(c.out.width - column(i), 0, kTile) : 0;
    tiles.first = x * step, tiles.second = (column(1) < c.out.width ? column(1) : x) * step;
    for (int64_t f = work.first_filter; f < work.last_filter; f += kChannels) {
      const uint16_t* filters = c.weights + f / kChannels * block;
      amx ? multiply_tiles(c, tiles, filters, sums) : multiply_vectors(c, tiles, filters, sums);
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t at = behind(i) * c.out.width + column(i), filter = f - work.first_filter;
        finish(c, sums + i * kTile * kChannels, tiles.pixels[i], c.bias + f,
               work.residual ? work.residual + at * c.added.pixel_stride + filter : nullptr,
               work.output + at * c.out.pixel_stride + filter);
      }
    }
  }
}

// All filters of a group, from one thread's copy of the rows.
inline void convolve_group(const Convolution& c, Rows& rows, int64_t image, int64_t group, int64_t row,
                           uint16_t* output) {
  convolve_row(c, {row, group * c.filters, (group + 1) * c.filters, rows.read(image, group, row), nullptr, output});
}

#endif

}  // namespace stadfast::cpu
