// The convolution at a network's beginning with the max pooling behind it: its result, the largest of all features,
// never leaves the cache.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "convolve.h"

namespace stadfast::cpu {
namespace {

// A square window of the convolution's result.
struct Pooling {
  int64_t size, stride, padding, height, width;
  int64_t begin(int64_t out) const { return std::max<int64_t>(0, out * stride - padding); }
  int64_t end(int64_t out, int64_t extent) const { return std::min(extent, out * stride - padding + size); }
};

#ifdef SF_TILES

// Rectified values as integers of the same order: without the sign, which only zeros and NaNs have.
SF_TILED inline __m512i ordered(const uint16_t* values) {
  return _mm512_and_si512(_mm512_loadu_si512(values), _mm512_set1_epi16(0x7fff));
}

SF_TILED void pool_row(const Convolution& c, const Pooling& pooling, const uint16_t* const* rows, int64_t count,
                       uint16_t* highest, uint16_t* output) {
  const int64_t channels = c.out.channels;
  for (int64_t i = 0; i < c.out.width * channels; i += kDepth) {
    __m512i value = ordered(rows[0] + i);
    for (int64_t row = 1; row < count; ++row) value = _mm512_max_epi16(value, ordered(rows[row] + i));
    _mm512_storeu_si512(highest + i, value);
  }
  for (int64_t x = 0; x < pooling.width; ++x)
    for (int64_t f = 0; f < channels; f += kDepth) {
      const uint16_t* column = highest + pooling.begin(x) * channels + f;
      __m512i value = _mm512_loadu_si512(column);
      for (int64_t n = pooling.end(x, c.out.width) - pooling.begin(x); n > 1; --n)
        value = _mm512_max_epi16(value, _mm512_loadu_si512(column += channels));
      _mm512_storeu_si512(output, value);
      output += kDepth;
    }
}

void run(const Convolution& c, const Pooling& pooling, uint16_t* output) {
  const int64_t length = c.out.width * c.out.channels;
  torch::stable::parallel_for(0, c.out.batch * pooling.height, 1, [&](int64_t i, int64_t end) {
    const TileScope scope;
    Rows copied(c);
    static thread_local std::vector<uint16_t> memory;  // the rows under a window, and the highest of their columns
    if (memory.size() < size_t((pooling.size + 1) * length)) memory.resize((pooling.size + 1) * length);
    std::vector<const uint16_t*> rows(pooling.size);
    int64_t known = -1, next = 0;
    for (; i < end; ++i) {
      const int64_t image = i / pooling.height, first = pooling.begin(i % pooling.height);
      const int64_t last = pooling.end(i % pooling.height, c.out.height);
      if (image != known) known = image, next = first;
      for (int64_t row = first; row < last; ++row) {
        uint16_t* slot = memory.data() + row % pooling.size * length;
        rows[row - first] = slot;
        if (row >= next) convolve_row(c, copied, {image, 0, row, 0, c.filters, slot});
      }
      next = last;
      pool_row(c, pooling, rows.data(), last - first, memory.data() + pooling.size * length,
               output + i * pooling.width * c.out.channels);
    }
  });
}

#endif

// input: (B, I, H, W) -> (B, O, H', W'); both bfloat16; filters: of pack_filters; bias: O, float32; padding: rows,
// columns, on both sides; pooling: size, stride, padding
Tensor convolve_pool(Tensor input, Tensor filters, Tensor bias, std::vector<int64_t> kernel, int64_t stride,
                     std::vector<int64_t> padding, std::vector<int64_t> pooling) {
  Convolution c = prepare(input, filters, bias, kernel, stride, padding, 1, true);
  SF_CHECK(pooling.size() == 3 && pooling[0] >= 1 && pooling[1] >= 1 && pooling[2] >= 0 &&
               2 * pooling[2] <= pooling[0] && pooling[0] < kMaxWindows &&
               std::min(c.out.height, c.out.width) + 2 * pooling[2] >= pooling[0],
           "convolve_pool: expected a window's size that fits, a stride, and a padding of at most half the size");
  const auto outputs = [&](int64_t side) { return (side + 2 * pooling[2] - pooling[0]) / pooling[1] + 1; };
  const Pooling pool{pooling[0], pooling[1], pooling[2], outputs(c.out.height), outputs(c.out.width)};
  Tensor output =
      torch::stable::empty({c.in.batch, c.out.channels, pool.height, pool.width}, ScalarType::BFloat16, std::nullopt,
                           input.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  c.out.channel_stride = 1, c.out.pixel_stride = c.out.channels, c.row_by_row = true;
#ifdef SF_TILES
  SF_CHECK(amx_available(), "convolve_pool: this processor has no tiles (AMX)");
  run(c, pool, static_cast<uint16_t*>(output.mutable_data_ptr()));
#else
  SF_CHECK(false, "convolve_pool: compiled without tiles (AMX)");
#endif
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("convolve_pool", TORCH_BOX(&stadfast::cpu::convolve_pool)); }
