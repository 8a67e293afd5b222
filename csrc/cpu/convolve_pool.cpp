// The convolution at a network's beginning with the max pooling behind it: its result, the largest of all features,
// never leaves the cache.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "convolve.h"

namespace stadfast::cpu {
namespace {

// A window along one side of the convolution's result.
struct Pooling {
  int64_t size, stride, padding, extent;
  int64_t outputs() const { return (extent + 2 * padding - size) / stride + 1; }
  int64_t begin(int64_t out) const { return std::max<int64_t>(0, out * stride - padding); }
  int64_t end(int64_t out) const { return std::min(extent, out * stride - padding + size); }
};

#ifdef SF_TILES

// Rectified values as integers of the same order: without the sign, which only zeros and NaNs have.
SF_TILED inline __m512i ordered(const uint16_t* values) {
  return _mm512_and_si512(_mm512_loadu_si512(values), _mm512_set1_epi16(0x7fff));
}

SF_TILED void pool_row(const Convolution& c, const Pooling& along, const uint16_t* const* rows, int64_t count,
                       uint16_t* highest, uint16_t* output) {
  const int64_t channels = c.out.channels;
  for (int64_t i = 0; i < c.out.width * channels; i += kDepth) {
    __m512i value = ordered(rows[0] + i);
    for (int64_t row = 1; row < count; ++row) value = _mm512_max_epi16(value, ordered(rows[row] + i));
    _mm512_storeu_si512(highest + i, value);
  }
  for (int64_t x = 0; x < along.outputs(); ++x)
    for (int64_t f = 0; f < channels; f += kDepth) {
      const uint16_t* column = highest + along.begin(x) * channels + f;
      __m512i value = _mm512_loadu_si512(column);
      for (int64_t n = along.end(x) - along.begin(x); n > 1; --n)
        value = _mm512_max_epi16(value, _mm512_loadu_si512(column += channels));
      _mm512_storeu_si512(output, value);
      output += kDepth;
    }
}

void run(const Convolution& c, const Pooling& down, const Pooling& along, uint16_t* output) {
  const int64_t length = c.out.width * c.out.channels, height = down.outputs();
  torch::stable::parallel_for(0, c.out.batch * height, 1, [&](int64_t i, int64_t end) {
    const TileScope scope;
    Rows copied(c);
    static thread_local std::vector<uint16_t> memory;  // the rows under a window, and the highest of their columns
    if (memory.size() < size_t((down.size + 1) * length)) memory.resize((down.size + 1) * length);
    std::vector<const uint16_t*> rows(down.size);
    int64_t known = -1, next = 0;
    for (; i < end; ++i) {
      const int64_t image = i / height, first = down.begin(i % height), last = down.end(i % height);
      if (image != known) known = image, next = first;
      for (int64_t row = first; row < last; ++row) {
        uint16_t* slot = memory.data() + row % down.size * length;
        rows[row - first] = slot;
        if (row >= next) convolve_row(c, {row, 0, c.filters, copied.read(image, 0, row), nullptr, slot});
      }
      next = last;
      pool_row(c, along, rows.data(), last - first, memory.data() + down.size * length,
               output + i * along.outputs() * c.out.channels);
    }
  });
}

#endif

// input: (B, I, H, W) -> (B, O, H', W'); both bfloat16; filters: of pack_filters; bias: O, float32; padding: rows,
// columns, on both sides; pooling: size, stride, padding of rows, of columns
Tensor convolve_pool(Tensor input, Tensor filters, Tensor bias, std::vector<int64_t> kernel, int64_t stride,
                     std::vector<int64_t> padding, std::vector<int64_t> pooling) {
  Convolution c = prepare(input, filters, bias, kernel, stride, padding, 1, true);
  const auto fits = [&](int64_t padded, int64_t side) {
    return padded >= 0 && 2 * padded <= pooling[0] && side + 2 * padded >= pooling[0];
  };
  SF_CHECK(pooling.size() == 4 && pooling[0] >= 1 && pooling[0] < kMaxWindows && pooling[1] >= 1 &&
               fits(pooling[2], c.out.height) && fits(pooling[3], c.out.width),
           "convolve_pool: expected a window's size that fits, a stride, and paddings of at most half the size");
  const Pooling down{pooling[0], pooling[1], pooling[2], c.out.height};
  const Pooling along{pooling[0], pooling[1], pooling[3], c.out.width};
  Tensor output =
      torch::stable::empty({c.in.batch, c.out.channels, down.outputs(), along.outputs()}, ScalarType::BFloat16,
                           std::nullopt, input.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  c.out.channel_stride = 1, c.out.pixel_stride = c.out.channels, c.row_by_row = true;
#ifdef SF_TILES
  SF_CHECK(amx_available(), "convolve_pool: this processor has no tiles (AMX)");
  run(c, down, along, static_cast<uint16_t*>(output.mutable_data_ptr()));
#else
  SF_CHECK(false, "convolve_pool: compiled without tiles (AMX)");
#endif
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("convolve_pool", TORCH_BOX(&stadfast::cpu::convolve_pool)); }
