#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check_scores.h"
#include "../dispatch.h"
#include "find_regions.h"

namespace stadfast::cpu {
namespace {

// maps: N x (H_i, W_i) floats; masks: N x (H_i, W_i) bool -> for M region pixels in raster order: scores (M,) of the
// maps' dtype, regions (M,) int32 numbered through all images; areas (K,) int64; counts (N,) int64 of regions
std::tuple<Tensor, Tensor, Tensor, Tensor> region_pixels(std::vector<Tensor> maps, std::vector<Tensor> masks) {
  check_region_maps(maps, masks);
  const std::vector<Regions> found = find_regions(masks);
  std::vector<int64_t> first_pixel{0}, first_region{0};
  for (const Regions& regions : found) {
    int64_t pixels = 0;
    for (const Run& run : regions.runs) pixels += run.end - run.begin;
    first_pixel.push_back(first_pixel.back() + pixels);
    first_region.push_back(first_region.back() + regions.count);
  }
  SF_CHECK(first_region.back() < INT32_MAX, "masks: too many regions");
  const int64_t images = int64_t(maps.size());
  Tensor scores = torch::stable::new_empty(maps[0], {first_pixel.back()});
  Tensor numbers = torch::stable::new_empty(maps[0], {first_pixel.back()}, ScalarType::Int);
  Tensor areas = torch::stable::new_zeros(maps[0], {first_region.back()}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(maps[0], {images}, ScalarType::Long);
  const int64_t grain = 1 + images * (1 << 16) / (1 + first_pixel.back());  // a thread must pay
  int32_t* number = static_cast<int32_t*>(numbers.mutable_data_ptr());
  int64_t* area = static_cast<int64_t*>(areas.mutable_data_ptr());
  int64_t* count = static_cast<int64_t*>(counts.mutable_data_ptr());
  SF_DISPATCH(maps[0].scalar_type(), T, A, {
    T* score = static_cast<T*>(scores.mutable_data_ptr());
    torch::stable::parallel_for(0, images, grain, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        const T* map = static_cast<const T*>(maps[i].const_data_ptr());
        const int64_t row = maps[i].stride(0), column = maps[i].stride(1), region = first_region[i];
        int64_t at = first_pixel[i];
        for (const Run& run : found[i].runs) {
          for (int64_t x = run.begin; x < run.end; ++x) score[at + x - run.begin] = map[run.row * row + x * column];
          std::fill_n(number + at, run.end - run.begin, int32_t(region + run.region));
          area[region + run.region] += run.end - run.begin;
          at += run.end - run.begin;
        }
        count[i] = found[i].count;
      }
    });
  })
  return {scores, numbers, areas, counts};
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("region_pixels", TORCH_BOX(&stadfast::cpu::region_pixels)); }
