// The loops over all pixels: everything else of the tracker sees runs only.
#include <cmath>
#include <limits>

#include "../macros.h"
#include "tracker.h"

namespace stadfast::linescan {
namespace {

constexpr int64_t kBlock = 64;

SF_CLONES int any_above(const float* scores, float low) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (int64_t i = 0; i < kBlock; ++i) any |= scores[i] > low;
  return any;
}

SF_CLONES int all_above(const float* scores, float low) {
  int all = 1;
#pragma omp simd reduction(& : all)
  for (int64_t i = 0; i < kBlock; ++i) all &= scores[i] > low;
  return all;
}

SF_CLONES int all_finite(const float* scores, int64_t count) {
  int all = 1;
#pragma omp simd reduction(& : all)
  for (int64_t i = 0; i < count; ++i) all &= std::fabs(scores[i]) <= std::numeric_limits<float>::max();
  return all;
}

}  // namespace

void find_runs(const float* scores, int64_t width, float low, std::vector<int64_t>* borders) {
  for (int64_t x = 0; x < width;) {
    while (x + kBlock <= width && !any_above(scores + x, low)) x += kBlock;
    while (x < width && !(scores[x] > low)) ++x;
    if (x >= width) return;
    borders->push_back(x);
    while (x + kBlock <= width && all_above(scores + x, low)) x += kBlock;
    while (x < width && scores[x] > low) ++x;
    borders->push_back(x);
  }
}

int64_t first_not_finite(const float* scores, int64_t count) {
  if (all_finite(scores, count)) return -1;
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(scores[i])) return i;
  return -1;
}

}  // namespace stadfast::linescan
