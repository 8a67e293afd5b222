#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "../check_scores.h"
#include "runs.h"

namespace stadfast::cpu {
namespace {

// masks: (B, H, W) bool -> labels (B, H, W) int32, counts (B,) int64
std::tuple<Tensor, Tensor> label_regions(Tensor masks) {
  check_masks(masks);
  const Tensor dense = torch::stable::contiguous(masks);
  const int64_t batch = masks.size(0), height = masks.size(1), width = masks.size(2);
  Tensor labels = torch::stable::new_empty(masks, {batch, height, width}, ScalarType::Int);
  Tensor counts = torch::stable::new_empty(masks, {batch}, ScalarType::Long);
  const uint8_t* pixels = static_cast<const uint8_t*>(dense.const_data_ptr());
  int32_t* out = static_cast<int32_t*>(labels.mutable_data_ptr());
  int64_t* count = static_cast<int64_t*>(counts.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t b, int64_t end) {
    for (; b < end; ++b) {
      const Regions regions = find_regions(pixels + b * height * width, height, width);
      int32_t* image = out + b * height * width;
      std::fill_n(image, height * width, 0);
      for (const Run& run : regions.runs)
        std::fill(image + run.row * width + run.begin, image + run.row * width + run.end, run.region + 1);
      count[b] = regions.count;
    }
  });
  return {labels, counts};
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("label_regions", TORCH_BOX(&stadfast::cpu::label_regions)); }
