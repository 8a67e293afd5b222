// Pixels of the combined map, from the level maps: what one CUDA thread computes. (The CPU computes whole rows, in
// cpu/upsample_rows.cpp, with the same arithmetic.) No torch here: the tests run it on the host, too.
#pragma once

#include <cstdint>

#include "bilinear.h"
#include "macros.h"

namespace stadfast {

constexpr int kMaxLevels = 32;

// One level, in the order of combination. `opens` and `closes` mark the first and the last level of a group; a sum
// over groups is one group of all levels.
template <class A>
struct CombinedLevel {
  const A* map;  // images x height x width
  int32_t height, width;
  A weight;
  bool opens, closes;
};

template <class A>
struct Combination {
  int64_t images;
  int32_t grid_height, grid_width;
  int32_t height, width;  // of the result
  int32_t levels;
  CombinedLevel<A> level[kMaxLevels];
};

// out[i] = the combined map at row y, column x + i of the grid (beyond its last column: the last one again).
template <int kCount, class A>
SF_HOST_DEVICE void combined_at_grid(const Combination<A>& c, int64_t image, int32_t y, int32_t x, A* out) {
  A sum[kCount];
  SF_UNROLL for (int i = 0; i < kCount; ++i) sum[i] = A(0), out[i] = A(1);
  for (int32_t l = 0; l < c.levels; ++l) {
    const CombinedLevel<A>& level = c.level[l];
    const Sample<A> row = sample<A>(y, level.height, c.grid_height);
    const A* map = level.map + image * level.height * level.width;
    const A *lower = map + int64_t(row.lower) * level.width, *upper = map + int64_t(row.upper) * level.width;
    SF_UNROLL for (int i = 0; i < kCount; ++i) {
      const int32_t column = x < c.grid_width - i ? x + i : c.grid_width - 1;
      const Sample<A> at = sample<A>(column, level.width, c.grid_width);
      const A value = level.weight * lerp(lerp(lower[at.lower], lower[at.upper], at.weight),
                                          lerp(upper[at.lower], upper[at.upper], at.weight), row.weight);
      sum[i] = level.opens ? value : sum[i] + value;
      if (level.closes) out[i] *= sum[i];
    }
  }
}

// Columns of the combined map between two rows of the grid. Neighbouring pixels of the result need the same columns,
// so the last two are kept.
template <class A>
struct Columns {
  const Combination<A>& c;
  int64_t image;
  Sample<A> row;
  int32_t index[2] = {-1, -1};
  A value[2] = {};

  SF_HOST_DEVICE A at(int32_t x) {
    if (x == index[0]) return value[0];
    if (x != index[1]) {
      index[0] = index[1], value[0] = value[1];
      A lower, upper;
      combined_at_grid<1>(c, image, row.lower, x, &lower);
      combined_at_grid<1>(c, image, row.upper, x, &upper);
      index[1] = x, value[1] = lerp(lower, upper, row.weight);
    }
    return value[1];
  }
};

// out[i] = the result at row y, column x + i; what lies beyond its last column is to be ignored.
template <int kCount, class A>
SF_HOST_DEVICE void combined_pixels(const Combination<A>& c, int64_t image, int32_t y, int32_t x, A* out) {
  if (c.grid_height == c.height && c.grid_width == c.width) {
    combined_at_grid<kCount>(c, image, y, x, out);
    return;
  }
  Columns<A> columns{c, image, sample<A>(y, c.grid_height, c.height)};
  SF_UNROLL for (int i = 0; i < kCount; ++i) {
    const int32_t column = x < c.width - i ? x + i : c.width - 1;
    const Sample<A> at = sample<A>(column, c.grid_width, c.width);
    const A lower = columns.at(at.lower);
    out[i] = lerp(lower, columns.at(at.upper), at.weight);
  }
}

}  // namespace stadfast
