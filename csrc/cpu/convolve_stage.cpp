// A stage of a residual network that begins with a stride: its first block has another shortcut than its input.
#include <torch/csrc/stable/library.h>

#include "convolve_blocks.h"

namespace stadfast::cpu {
namespace {

#ifdef SF_TILES

// One thread's rows of the first convolution, and of the shortcut beside it.
class StridedRows {
 public:
  static constexpr bool kShortcut = true;

  StridedRows(const Convolution& first, const Convolution& shortcut)
      : first_(first), shortcut_(shortcut), copied_(first), shortcut_copied_(shortcut, 1) {
    static thread_local std::vector<uint16_t> memory;
    const size_t wanted = size_t(first.out.width * first.filters);
    if (memory.size() < wanted) memory.resize(wanted);
    memory_ = memory.data();
  }

  void read(int64_t image, int64_t group, int64_t row, uint16_t* output) {
    convolve_group(first_, copied_, image, group, row, output);
  }

  const uint16_t* shortcut(int64_t image, int64_t group, int64_t row) {
    convolve_group(shortcut_, shortcut_copied_, image, group, row, memory_);
    return memory_;
  }

 private:
  const Convolution &first_, &shortcut_;
  Rows copied_, shortcut_copied_;
  uint16_t* memory_;
};

#endif

// input: (B, I, H, W) -> (B, O, H', W'); both bfloat16; filters, bias: 3 x 3; shortcut_filters, shortcut_bias: 1 x 1;
// block_filters: (N, ...), of pack_filters, one for the first block and two for each other; block_bias: (N, O), float32
Tensor convolve_stage(Tensor input, Tensor filters, Tensor bias, Tensor shortcut_filters, Tensor shortcut_bias,
                      Tensor block_filters, Tensor block_bias, int64_t stride, int64_t groups) {
  const Convolution first = prepare_rows(input, filters, bias, 3, stride, 1, groups, true);
  const Convolution shortcut = prepare_rows(input, shortcut_filters, shortcut_bias, 1, stride, 0, groups, false);
  SF_CHECK(first.filters == shortcut.filters, "convolve_stage: expected a shortcut with as many channels");
  const std::vector<Convolution> chain = prepare_blocks(first.out, block_filters, block_bias, groups, true);
  Tensor output = empty_features(input, chain.back().out);
  SF_IF_BF16("convolve_stage", {
    run_blocks(chain, [&] { return StridedRows(first, shortcut); }, static_cast<uint16_t*>(output.mutable_data_ptr()));
  });
  return output;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("convolve_stage", TORCH_BOX(&stadfast::cpu::convolve_stage)); }
