#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "../check.h"
#include "../layout.h"
#include "../macros.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements read below which a second thread costs more than it brings

// Floats as signed integers of the same order (x < y exactly if key(x) < key(y) for x != y), their own inverse;
// every NaN becomes the largest, so that it wins as it does in PyTorch. Integers, because halves then need no
// widening.
template <class I>
inline __attribute__((always_inline)) I key(I bits, I infinity) {
  constexpr I kLargest = std::numeric_limits<I>::max();
  const I magnitude = I(bits & kLargest);
  const I ordered = I(bits ^ (I(bits >> (8 * sizeof(I) - 1)) & kLargest));
  return magnitude > infinity ? kLargest : ordered;
}

template <class I>
inline __attribute__((always_inline)) void raise_body(const I* in, int64_t n, I infinity, I* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const I value = key(in[i], infinity);
    out[i] = value > out[i] ? value : out[i];
  }
}

template <class I>
inline __attribute__((always_inline)) void raise_keys_body(const I* in, int64_t n, I* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = in[i] > out[i] ? in[i] : out[i];
}

template <class I>
inline __attribute__((always_inline)) void restore_body(int64_t n, I* values) {
  constexpr I kLargest = std::numeric_limits<I>::max();
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) values[i] = I(values[i] ^ (I(values[i] >> (8 * sizeof(I) - 1)) & kLargest));
}

// target_clones takes no templates: one named clone per element type.
#define SF_LEAVES(I)                                                                                     \
  SF_CLONES void raise(const I* in, int64_t n, I infinity, I* out) { raise_body(in, n, infinity, out); } \
  SF_CLONES void raise_keys(const I* in, int64_t n, I* out) { raise_keys_body(in, n, out); }             \
  SF_CLONES void restore(int64_t n, I* values) { restore_body(n, values); }

SF_LEAVES(int16_t)
SF_LEAVES(int32_t)

struct Window {
  int64_t size, stride, padding;
  int64_t begin(int64_t out) const { return std::max<int64_t>(0, out * stride - padding); }
  int64_t end(int64_t out, int64_t extent) const { return std::min(extent, out * stride - padding + size); }
};

// One row of the result: the maximum down the columns first, in long loops, then along the row.
template <class I>
void pool_row(const I* image, const Layout& in, const Window& window, I infinity, int64_t y, int64_t out_width,
              std::vector<I>& columns, I* out) {
  constexpr I kSmallest = std::numeric_limits<I>::min();
  const int64_t channels = in.channels, run = in.width * channels;
  columns.assign(run, kSmallest);
  for (int64_t row = window.begin(y); row < window.end(y, in.height); ++row) {
    const I* source = image + row * in.width * in.pixel_stride;
    if (in.pixel_stride == channels) {
      raise(source, run, infinity, columns.data());
    } else {
      for (int64_t x = 0; x < in.width; ++x)
        raise(source + x * in.pixel_stride, channels, infinity, columns.data() + x * channels);
    }
  }
  std::fill(out, out + out_width * channels, kSmallest);
  for (int64_t x = 0; x < out_width; ++x)
    for (int64_t column = window.begin(x); column < window.end(x, in.width); ++column)
      raise_keys(columns.data() + column * channels, channels, out + x * channels);
  restore(out_width * channels, out);
}

template <class I>
void pool(const Tensor& input, const Layout& in, const Window& window, I infinity, int64_t height, int64_t width,
          Tensor& output) {
  const I* source = static_cast<const I*>(input.const_data_ptr());
  I* target = static_cast<I*>(output.mutable_data_ptr());
  const int64_t row_elements = window.size * in.width * in.channels;
  torch::stable::parallel_for(0, in.batch * height, std::max<int64_t>(1, kGrain / row_elements),
                              [&](int64_t i, int64_t end) {
                                std::vector<I> columns;
                                for (; i < end; ++i)
                                  pool_row(source + i / height * in.batch_stride, in, window, infinity, i % height,
                                           width, columns, target + i * width * in.channels);
                              });
}

// input: (B, C, H, W) -> (B, C, H', W'), channels_last, H' = (H + 2 padding - kernel) / stride + 1
Tensor max_pool2d(Tensor input, int64_t kernel, int64_t stride, int64_t padding) {
  using torch::headeronly::MemoryFormat;
  SF_CHECK(input.dim() == 4, "max_pool2d: expected (B, C, H, W)");
  SF_CHECK(kernel >= 1 && stride >= 1 && padding >= 0 && 2 * padding <= kernel,
           "max_pool2d: expected kernel, stride >= 1 and 0 <= padding <= kernel / 2");
  SF_CHECK(input.size(1) >= 1 && input.size(1) < kMaxExtent && input.size(2) < kMaxExtent && input.size(3) < kMaxExtent,
           "max_pool2d: too large");
  const Window window{kernel, stride, padding};
  const int64_t height = (input.size(2) + 2 * padding - kernel) / stride + 1;
  const int64_t width = (input.size(3) + 2 * padding - kernel) / stride + 1;
  SF_CHECK(input.size(2) + 2 * padding >= kernel && input.size(3) + 2 * padding >= kernel,
           "max_pool2d: the window is larger than the padded input");
  Layout layout;
  if (!find_layout(input, &layout) || layout.channel_stride != 1) {
    input = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
    find_layout(input, &layout);
  }
  Tensor output = torch::stable::empty({input.size(0), input.size(1), height, width}, input.scalar_type(), std::nullopt,
                                       input.device(), std::nullopt, MemoryFormat::ChannelsLast);
  switch (input.scalar_type()) {
    case ScalarType::Float:
      pool<int32_t>(input, layout, window, 0x7f800000, height, width, output);
      break;
    case ScalarType::Half:
      pool<int16_t>(input, layout, window, 0x7c00, height, width, output);
      break;
    case ScalarType::BFloat16:
      pool<int16_t>(input, layout, window, 0x7f80, height, width, output);
      break;
    default:
      SF_CHECK(false, "max_pool2d: expected float32, float16 or bfloat16");
  }
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("max_pool2d", TORCH_BOX(&stadfast::cpu::max_pool2d)); }
