// A maximum pooling's window along one side.
#pragma once

#include <algorithm>

#include "../check.h"

namespace stadfast::cpu {

struct Pooling {
  int64_t size, stride, padding, extent;  // extent: of what is pooled

  // Before anything is computed from the numbers.
  bool fits() const {
    return within(1, size) && within(1, stride) && within(0, padding) && 2 * padding <= size && within(1, extent) &&
           extent + 2 * padding >= size;
  }
  int64_t outputs() const { return (extent + 2 * padding - size) / stride + 1; }
  int64_t begin(int64_t out) const { return std::max<int64_t>(0, out * stride - padding); }
  int64_t end(int64_t out) const { return std::min(extent, out * stride - padding + size); }
};

}  // namespace stadfast::cpu
