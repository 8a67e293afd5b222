#include "runs.h"

#include <cstring>

namespace stadfast::cpu {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101ull;

uint64_t eight_bytes(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

bool any_zero_byte(uint64_t word) { return (word - kOnes) & ~word & (kOnes << 7); }

void find_runs(const uint8_t* pixels, int32_t row, int32_t width, std::vector<Run>* runs) {
  for (int32_t x = 0; x < width;) {
    while (width - x >= 8 && eight_bytes(pixels + x) == 0) x += 8;
    while (x < width && pixels[x] == 0) ++x;
    if (x == width) return;
    const int32_t begin = x;
    while (width - x >= 8 && !any_zero_byte(eight_bytes(pixels + x))) x += 8;
    while (x < width && pixels[x] != 0) ++x;
    runs->push_back({row, begin, x, int32_t(runs->size())});
  }
}

// Until the end, `region` is the index of another run of the region, or the run's own index at the root. Roots are
// the smallest index of their region, which is its first run in raster order.
int32_t root(std::vector<Run>& runs, int32_t i) {
  while (runs[i].region != i) i = runs[i].region = runs[runs[i].region].region;  // path halving
  return i;
}

void unite(std::vector<Run>& runs, int32_t i, int32_t j) {
  i = root(runs, i), j = root(runs, j);
  if (i < j)
    runs[j].region = i;
  else
    runs[i].region = j;
}

}  // namespace

Regions find_regions(const uint8_t* mask, int64_t height, int64_t width) {
  Regions regions;
  std::vector<Run>& runs = regions.runs;
  size_t above = 0, above_end = 0;  // the runs of the row above, if they may touch
  for (int64_t y = 0; y < height; ++y) {
    const size_t first = runs.size();
    find_runs(mask + y * width, int32_t(y), int32_t(width), &runs);
    for (size_t i = first; i < runs.size(); ++i) {
      while (above < above_end && runs[above].end < runs[i].begin) ++above;
      for (size_t j = above; j < above_end && runs[j].begin <= runs[i].end; ++j) unite(runs, int32_t(j), int32_t(i));
    }
    above = first, above_end = runs.size();
  }
  for (size_t i = 0; i < runs.size(); ++i) {  // a root comes before every other run of its region
    const int32_t parent = runs[i].region;
    runs[i].region = parent == int32_t(i) ? int32_t(regions.count++) : runs[parent].region;
  }
  return regions;
}

}  // namespace stadfast::cpu
