// The convolution at a network's beginning with the max pooling behind it: its result, the largest of all features,
// never leaves the cache.
#include "convolve_pool.h"

#include <torch/csrc/stable/library.h>

#include <optional>

namespace stadfast::cpu {
namespace {

#ifdef SF_TILES

void run(const Stem& stem, uint16_t* output) {
  const int64_t height = stem.down.outputs(), length = stem.along.outputs() * stem.c.filters;
  torch::stable::parallel_for(0, stem.c.out.batch * height, 1, [&](int64_t i, int64_t end) {
    const TileScope scope;
    PooledRows rows(stem, 1);
    for (; i < end; ++i) rows.read(i / height, 0, i % height, output + i * length);
  });
}

#endif

// input: (B, I, H, W) -> (B, O, H', W'); both bfloat16; filters: of pack_filters; bias: O, float32; padding: rows,
// columns, on both sides; pooling: size, stride, padding of rows, of columns
Tensor convolve_pool(Tensor input, Tensor filters, Tensor bias, std::vector<int64_t> kernel, int64_t stride,
                     std::vector<int64_t> padding, std::vector<int64_t> pooling) {
  const Stem stem = prepare_stem(input, filters, bias, kernel, stride, padding, pooling);
  Tensor output = torch::stable::empty(
      {stem.c.out.batch, stem.c.out.channels, stem.down.outputs(), stem.along.outputs()}, ScalarType::BFloat16,
      std::nullopt, input.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  SF_IF_BF16("convolve_pool", { run(stem, static_cast<uint16_t*>(output.mutable_data_ptr())); });
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("convolve_pool", TORCH_BOX(&stadfast::cpu::convolve_pool)); }
