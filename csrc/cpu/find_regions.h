// The regions of a list of masks.
#pragma once

#include <vector>

#include "../check.h"
#include "runs.h"

namespace stadfast::cpu {

// masks: (H_i, W_i) bool. The labels are never painted: a mask's runs are few, and are all that is needed.
inline std::vector<Regions> find_regions(const std::vector<Tensor>& masks) {
  int64_t pixels = 0;
  for (const Tensor& mask : masks) pixels += mask.numel();
  const int64_t images = int64_t(masks.size());
  // A thread looks for regions in a megapixel faster than it wakes up another.
  const int64_t grain = 1 + images * (1 << 20) / (1 + pixels);
  std::vector<Regions> found(masks.size());
  torch::stable::parallel_for(0, images, grain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const Tensor dense = torch::stable::contiguous(masks[i]);
      found[i] = find_regions(static_cast<const uint8_t*>(dense.const_data_ptr()), dense.size(0), dense.size(1));
    }
  });
  return found;
}

}  // namespace stadfast::cpu
