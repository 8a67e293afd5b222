// A residual network from its first convolution to the end of its first blocks: one pass over the images, row by row.
#include <torch/csrc/stable/library.h>

#include "convolve_blocks.h"
#include "convolve_pool.h"

namespace stadfast::cpu {
namespace {

// input: (B, I, H, W) -> (B, O, H', W'); both bfloat16; filters .. pooling: as of convolve_pool; block_filters:
// (N, ...), of pack_filters, two for each block; block_bias: (N, O), float32; groups: of the blocks' channels
Tensor convolve_pool_blocks(Tensor input, Tensor filters, Tensor bias, std::vector<int64_t> kernel, int64_t stride,
                            std::vector<int64_t> padding, std::vector<int64_t> pooling, Tensor block_filters,
                            Tensor block_bias, int64_t groups) {
  const Stem stem = prepare_stem(input, filters, bias, kernel, stride, padding, pooling);
  const std::vector<Convolution> chain = prepare_blocks(stem.pooled(), block_filters, block_bias, groups);
  Tensor output = empty_features(input, chain.back().out);
  SF_IF_BF16("convolve_pool_blocks", {
    run_blocks(chain, [&] { return PooledRows(stem, groups); }, static_cast<uint16_t*>(output.mutable_data_ptr()));
  });
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) {
  m.impl("convolve_pool_blocks", TORCH_BOX(&stadfast::cpu::convolve_pool_blocks));
}
