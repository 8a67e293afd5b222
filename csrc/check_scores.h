// What the metrics' ops take: scores and masks.
#pragma once

#include <vector>

#include "check.h"

namespace stadfast {

// Tensors of one dtype on one device, of any shapes.
inline void check_scores(const std::vector<Tensor>& scores) {
  for (size_t i = 0; i < scores.size(); ++i)
    SF_CHECK(scores[i].scalar_type() == scores[0].scalar_type() &&
                 scores[i].get_device_index() == scores[0].get_device_index(),
             "scores[", i, "]: dtypes or devices differ");
}

inline void check_masks(const Tensor& masks) {
  SF_CHECK(masks.dim() == 3, "masks: expected (B, H, W), got ", masks.dim(), " dimensions");
  SF_CHECK(masks.scalar_type() == ScalarType::Bool, "masks: expected bool");
  SF_CHECK(masks.size(1) * masks.size(2) < INT32_MAX, "masks: an image is too large");
}

// As many maps of one dtype as masks, each of its map's shape (H_i, W_i), on the CPU.
inline void check_region_maps(const std::vector<Tensor>& maps, const std::vector<Tensor>& masks) {
  SF_CHECK(!maps.empty() && maps.size() == masks.size(), "masks: expected one per map");
  check_scores(maps);
  for (size_t i = 0; i < maps.size(); ++i)
    SF_CHECK(masks[i].dim() == 2 && masks[i].scalar_type() == ScalarType::Bool && same_shape(maps[i], masks[i]) &&
                 !masks[i].is_cuda() && masks[i].numel() < INT32_MAX,
             "masks[", i, "]: expected (H, W) bool like its map");
}

}  // namespace stadfast
