#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check_scores.h"
#include "../dispatch.h"
#include "../order_key.h"
#include "bin_keys.h"
#include "find_regions.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kBlock = 1024;  // keys computed at once

// f(region, keys, n) for stretches of the regions' pixels, image after image: sums do not depend on threads.
template <class T, class F>
void for_region_keys(const Tensor& map, const Regions& regions, const F& f) {
  const T* scores = static_cast<const T*>(map.const_data_ptr());
  const int64_t row = map.stride(0), column = map.stride(1);
  T gathered[kBlock];
  uint16_t keys[kBlock];
  for (const Run& run : regions.runs)
    for (int64_t x = run.begin; x < run.end; x += kBlock) {
      const int64_t n = std::min<int64_t>(kBlock, run.end - x);
      const T* at = scores + run.row * row + x * column;
      if (column != 1) {
        for (int64_t i = 0; i < n; ++i) gathered[i] = at[i * column];
        at = gathered;
      }
      bin_keys(at, n, keys);
      f(run.region, keys, n);
    }
}

// maps: N x (H_i, W_i) floats; masks: N x (H_i, W_i) bool -> by 16-bit key: pixels inside regions (65536,) int64, the
// sum over them of one over their region's area (65536,) float64; counts (N,) int64 of regions
std::tuple<Tensor, Tensor, Tensor> region_histogram(std::vector<Tensor> maps, std::vector<Tensor> masks) {
  check_region_maps(maps, masks);
  const std::vector<Regions> found = find_regions(masks);
  Tensor pixels = torch::stable::new_zeros(maps[0], {kBins}, ScalarType::Long);
  Tensor overlap = torch::stable::new_zeros(maps[0], {kBins}, ScalarType::Double);
  Tensor counts = torch::stable::new_empty(maps[0], {int64_t(maps.size())}, ScalarType::Long);
  int64_t* pixel = static_cast<int64_t*>(pixels.mutable_data_ptr());
  double* share = static_cast<double*>(overlap.mutable_data_ptr());
  SF_DISPATCH_KEYS(maps[0].scalar_type(), T, {
    for (size_t i = 0; i < maps.size(); ++i) {
      std::vector<double> one(found[i].count);  // pixel's share of each region
      for (const Run& run : found[i].runs) one[run.region] += run.end - run.begin;
      for (double& area : one) area = 1.0 / area;
      for_region_keys<T>(maps[i], found[i], [&](int32_t region, const uint16_t* keys, int64_t n) {
        for (int64_t j = 0; j < n; ++j) ++pixel[keys[j]], share[keys[j]] += one[region];
      });
      static_cast<int64_t*>(counts.mutable_data_ptr())[i] = found[i].count;
    }
  })
  return {pixels, overlap, counts};
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("region_histogram", TORCH_BOX(&stadfast::cpu::region_histogram)); }
