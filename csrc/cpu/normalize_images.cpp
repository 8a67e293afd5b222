#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../check.h"
#include "../macros.h"
#include "narrow.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // values below which a second thread costs more than it brings
constexpr int64_t kChannels = 3;

SF_INLINE uint16_t to_bfloat16(float value) { return narrow<torch::headeronly::BFloat16>(value).x; }
SF_INLINE float to_float(float value) { return value; }

// scale, shift: one per value of a row, as the channels take turns
#define SF_ROW(IN, OUT, STORE)                                                                              \
  SF_CLONES void normalize_row(const IN* in, int64_t n, const float* scale, const float* shift, OUT* out) { \
    _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) out[i] = STORE(float(in[i]) * scale[i] + shift[i]); \
  }

// The same of three planes (which are one for a monochrome camera), put side by side.
#define SF_PLANES(IN, OUT, STORE)                                                                       \
  SF_CLONES void normalize_planes(const IN* a, const IN* b, const IN* c, int64_t n, const float* scale, \
                                  const float* shift, OUT* out) {                                       \
    for (int64_t x = 0; x < n; ++x) {                                                                   \
      out[3 * x] = STORE(float(a[x]) * scale[0] + shift[0]);                                            \
      out[3 * x + 1] = STORE(float(b[x]) * scale[1] + shift[1]);                                        \
      out[3 * x + 2] = STORE(float(c[x]) * scale[2] + shift[2]);                                        \
    }                                                                                                   \
  }

#define SF_LEAVES(IN, OUT, STORE) SF_ROW(IN, OUT, STORE) SF_PLANES(IN, OUT, STORE)

SF_LEAVES(uint8_t, float, to_float)
SF_LEAVES(uint8_t, uint16_t, to_bfloat16)
SF_LEAVES(float, float, to_float)
SF_LEAVES(float, uint16_t, to_bfloat16)

bool is_interleaved(const Tensor& images) {
  return images.stride(1) == 1 && (images.size(3) == 1 || images.stride(3) == kChannels);
}

template <class In, class Out>
void normalize(const Tensor& images, const std::vector<float>& scale, const std::vector<float>& shift, Tensor& output) {
  const int64_t height = images.size(2), n = images.size(3) * kChannels;
  const int64_t image_stride = images.stride(0), row_stride = images.stride(2), plane = images.stride(1);
  const bool planar = !is_interleaved(images);
  const In* in = static_cast<const In*>(images.const_data_ptr());
  Out* out = static_cast<Out*>(output.mutable_data_ptr());
  torch::stable::parallel_for(0, images.size(0) * height, std::max<int64_t>(1, kGrain / n),
                              [&](int64_t row, int64_t end) {
                                for (; row < end; ++row) {
                                  const In* first = in + row / height * image_stride + row % height * row_stride;
                                  if (planar)
                                    normalize_planes(first, first + plane, first + 2 * plane, images.size(3),
                                                     scale.data(), shift.data(), out + row * n);
                                  else
                                    normalize_row(first, n, scale.data(), shift.data(), out + row * n);
                                }
                              });
}

// images: (B, 3, H, W) uint8 or float32; mean, std: 3 -> (B, 3, H, W) channels_last, float32 or bfloat16
Tensor normalize_images(Tensor images, std::vector<double> mean, std::vector<double> std, bool bfloat16) {
  using torch::headeronly::MemoryFormat;
  const bool bytes = images.scalar_type() == ScalarType::Byte;
  SF_CHECK(bytes || images.scalar_type() == ScalarType::Float, "normalize_images: expected uint8 or float32");
  SF_CHECK(images.dim() == 4 && images.size(1) == kChannels && images.size(2) >= 1 && images.size(3) >= 1 &&
               images.size(3) < kMaxExtent,
           "normalize_images: expected (B, 3, H, W)");
  SF_CHECK(mean.size() == kChannels && std.size() == kChannels, "normalize_images: expected 3 means and deviations");
  if (!is_interleaved(images) && images.size(3) > 1 && images.stride(3) != 1)
    images = torch::stable::contiguous(images, MemoryFormat::ChannelsLast);
  const int64_t width = images.size(3);
  std::vector<float> scale(width * kChannels), shift(width * kChannels);
  for (int64_t i = 0; i < width * kChannels; ++i) {
    const double deviation = std[i % kChannels];
    scale[i] = float(1 / (deviation * (bytes ? 255 : 1)));
    shift[i] = float(-mean[i % kChannels] / deviation);
  }
  Tensor output = torch::stable::empty({images.size(0), kChannels, images.size(2), width},
                                       bfloat16 ? ScalarType::BFloat16 : ScalarType::Float, std::nullopt,
                                       images.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (bytes)
    bfloat16 ? normalize<uint8_t, uint16_t>(images, scale, shift, output)
             : normalize<uint8_t, float>(images, scale, shift, output);
  else
    bfloat16 ? normalize<float, uint16_t>(images, scale, shift, output)
             : normalize<float, float>(images, scale, shift, output);
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("normalize_images", TORCH_BOX(&stadfast::cpu::normalize_images)); }
