// 8-connected regions of one mask as runs: maximal stretches of set pixels within a row.
#pragma once

#include <cstdint>
#include <vector>

namespace stadfast::cpu {

struct Run {
  int32_t row, begin, end;  // pixels [begin, end) of the row
  int32_t region;           // 0, 1, ... in raster order of the regions' first pixels
};

struct Regions {
  std::vector<Run> runs;  // in raster order
  int64_t count = 0;
};

// mask: (height, width) bytes, 0 or not.
Regions find_regions(const uint8_t* mask, int64_t height, int64_t width);

}  // namespace stadfast::cpu
