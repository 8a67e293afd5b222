#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "../check.h"
#include "../layout.h"
#include "../macros.h"
#include "pooling.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements read below which a second thread costs more than it brings

// Floats as signed integers of the same order (x < y exactly if key(x) < key(y) for x != y), their own inverse;
// every NaN becomes the largest, so that it wins as it does in PyTorch. Integers, because halves then need no
// widening.
template <class I>
SF_INLINE I key(I bits, I infinity) {
  constexpr I kLargest = std::numeric_limits<I>::max();
  const I magnitude = I(bits & kLargest);
  const I ordered = I(bits ^ (I(bits >> (8 * sizeof(I) - 1)) & kLargest));
  return magnitude > infinity ? kLargest : ordered;
}

template <class I>
SF_INLINE void raise_body(const I* in, int64_t n, I infinity, I* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const I value = key(in[i], infinity);
    out[i] = value > out[i] ? value : out[i];
  }
}

template <class I>
SF_INLINE void raise_keys_body(const I* in, int64_t n, I* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = in[i] > out[i] ? in[i] : out[i];
}

template <class I>
SF_INLINE void restore_body(int64_t n, I* values) {
  constexpr I kLargest = std::numeric_limits<I>::max();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) values[i] = I(values[i] ^ (I(values[i] >> (8 * sizeof(I) - 1)) & kLargest));
}

// The usual window has three rows and columns: all at once, nothing is read or written twice. At a border, where there
// are fewer, one comes twice.
template <class I>
SF_INLINE void highest_of_rows_body(const I* a, const I* b, const I* c, int64_t n, I infinity, I* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const I first = key(a[i], infinity), second = key(b[i], infinity), third = key(c[i], infinity);
    const I higher = first > second ? first : second;
    out[i] = higher > third ? higher : third;
  }
}

template <class I>
SF_INLINE void highest_of_columns_body(const I* a, const I* b, const I* c, int64_t n, I* out) {
  constexpr I kLargest = std::numeric_limits<I>::max();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const I higher = a[i] > b[i] ? a[i] : b[i];
    const I highest = higher > c[i] ? higher : c[i];
    out[i] = I(highest ^ (I(highest >> (8 * sizeof(I) - 1)) & kLargest));
  }
}

// target_clones takes no templates: one named clone per element type.
#define SF_LEAVES(I)                                                                                     \
  SF_CLONES void raise(const I* in, int64_t n, I infinity, I* out) { raise_body(in, n, infinity, out); } \
  SF_CLONES void raise_keys(const I* in, int64_t n, I* out) { raise_keys_body(in, n, out); }             \
  SF_CLONES void restore(int64_t n, I* values) { restore_body(n, values); }                              \
  SF_CLONES void highest_of_rows(const I* a, const I* b, const I* c, int64_t n, I infinity, I* out) {    \
    highest_of_rows_body(a, b, c, n, infinity, out);                                                     \
  }                                                                                                      \
  SF_CLONES void highest_of_columns(const I* a, const I* b, const I* c, int64_t n, I* out) {             \
    highest_of_columns_body(a, b, c, n, out);                                                            \
  }

SF_LEAVES(int16_t)
SF_LEAVES(int32_t)

// Pixels whose channels are neighbours.
struct Block {
  Tensor tensor;
  Layout layout;

  template <class I>
  const I* row(int64_t b, int64_t y) const {
    return static_cast<const I*>(tensor.const_data_ptr()) + b * layout.batch_stride +
           y * layout.width * layout.pixel_stride;
  }
};

Block read(const Tensor& tensor) {
  Block block;
  block.tensor = interleaved(tensor, &block.layout);
  return block;
}

template <class I>
void raise_row(const I* row, const Layout& in, I infinity, I* columns) {
  if (in.pixel_stride == in.channels) return raise(row, in.width * in.channels, infinity, columns);
  for (int64_t x = 0; x < in.width; ++x)
    raise(row + x * in.pixel_stride, in.channels, infinity, columns + x * in.channels);
}

// One row of the result: the maximum down the columns first, in long loops, then along the row.
template <class I>
void pool_columns(const I* columns, const Pooling& axis, int64_t channels, I* out) {
  const int64_t width = axis.outputs();
  if (axis.size == 3) {
    for (int64_t x = 0; x < width; ++x) {
      const auto column = [&](int64_t i) { return columns + std::min(axis.begin(x) + i, axis.end(x) - 1) * channels; };
      highest_of_columns(column(0), column(1), column(2), channels, out + x * channels);
    }
    return;
  }
  std::fill(out, out + width * channels, std::numeric_limits<I>::min());
  for (int64_t x = 0; x < width; ++x)
    for (int64_t column = axis.begin(x); column < axis.end(x); ++column)
      raise_keys(columns + column * channels, channels, out + x * channels);
  restore(width * channels, out);
}

// `above`: the rows before those of `block`; may have none.
template <class I>
void pool(const Block& above, const Block& block, const Pooling& down, const Pooling& along, I infinity,
          Tensor& output) {
  I* target = static_cast<I*>(output.mutable_data_ptr());
  const int64_t height = down.outputs(), channels = block.layout.channels, run = along.extent * channels;
  const int64_t before = down.extent - block.layout.height;
  const bool at_once = down.size == 3 && above.layout.pixel_stride == channels && block.layout.pixel_stride == channels;
  const auto pool_rows = [&](int64_t i, int64_t end) {
    std::vector<I> columns;
    for (; i < end; ++i) {
      const int64_t b = i / height, top = down.begin(i % height), bottom = down.end(i % height);
      const auto row = [&](int64_t y) { return y < before ? above.row<I>(b, y) : block.row<I>(b, y - before); };
      if (at_once) {
        columns.resize(run);
        highest_of_rows(row(top), row(std::min(top + 1, bottom - 1)), row(bottom - 1), run, infinity, columns.data());
      } else {
        columns.assign(run, std::numeric_limits<I>::min());
        for (int64_t y = top; y < bottom; ++y)
          raise_row(row(y), (y < before ? above : block).layout, infinity, columns.data());
      }
      pool_columns(columns.data(), along, channels, target + i * along.outputs() * channels);
    }
  };
  torch::stable::parallel_for(0, block.layout.batch * height, std::max<int64_t>(1, kGrain / (down.size * run)),
                              pool_rows);
}

// input: (B, C, H, W), above: (B, C, A, W) or none -> (B, C, H', W'), channels_last; padding: rows, columns;
// H' = (A + H + 2 padding - kernel) / stride + 1
Tensor max_pool2d(Tensor input, std::optional<Tensor> above, int64_t kernel, int64_t stride,
                  std::vector<int64_t> padding) {
  using torch::headeronly::MemoryFormat;
  SF_CHECK(input.dim() == 4, "max_pool2d: expected (B, C, H, W)");
  SF_CHECK(padding.size() == 2, "max_pool2d: expected two paddings");
  int64_t rows = input.size(2);
  if (above) {
    SF_CHECK(above->dim() == 4 && above->size(0) == input.size(0) && above->size(1) == input.size(1) &&
                 above->size(3) == input.size(3) && above->scalar_type() == input.scalar_type(),
             "max_pool2d: expected rows above of the input's batch, channels, width and dtype");
    rows += above->size(2);
  }
  SF_CHECK(within(1, input.size(1)) && rows < kMaxExtent && input.size(3) < kMaxExtent, "max_pool2d: too large");
  const Pooling down{kernel, stride, padding[0], rows}, along{kernel, stride, padding[1], input.size(3)};
  SF_CHECK(
      down.fits() && along.fits(),
      "max_pool2d: expected kernel, stride >= 1 and 0 <= padding <= kernel / 2, and no window larger than the padded "
      "input");
  const Block block = read(input), before = above ? read(*above) : block;
  Tensor output =
      torch::stable::empty({input.size(0), input.size(1), down.outputs(), along.outputs()}, input.scalar_type(),
                           std::nullopt, input.device(), std::nullopt, MemoryFormat::ChannelsLast);
  switch (input.scalar_type()) {
    case ScalarType::Float:
      pool<int32_t>(before, block, down, along, 0x7f800000, output);
      break;
    case ScalarType::Half:
      pool<int16_t>(before, block, down, along, 0x7c00, output);
      break;
    case ScalarType::BFloat16:
      pool<int16_t>(before, block, down, along, 0x7f80, output);
      break;
    default:
      SF_CHECK(false, "max_pool2d: expected float32, float16 or bfloat16");
  }
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("max_pool2d", TORCH_BOX(&stadfast::cpu::max_pool2d)); }
