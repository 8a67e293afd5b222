// Residual blocks on features in memory.
#include "convolve_blocks.h"

#include <torch/csrc/stable/library.h>

namespace stadfast::cpu {
namespace {

// input: (B, C, H, W) -> (B, C, H, W); both bfloat16; filters: (N, ...), of pack_filters, two for each block;
// bias: (N, C), float32
Tensor convolve_blocks(Tensor input, Tensor filters, Tensor bias, int64_t groups) {
  SF_CHECK(is_features(input), "convolve_blocks: expected an input (B, C, H, W), bfloat16");
  Layout in;
  input = interleaved(input, &in);
  std::vector<Convolution> chain = prepare_blocks(in, filters, bias, groups);
  chain[0].input = static_cast<const uint16_t*>(input.const_data_ptr());
  Tensor output = empty_features(input, chain.back().out);
  SF_IF_BF16("convolve_blocks", {
    run_blocks(chain, [&] { return CopiedRows{chain[0]}; }, static_cast<uint16_t*>(output.mutable_data_ptr()));
  });
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("convolve_blocks", TORCH_BOX(&stadfast::cpu::convolve_blocks)); }
