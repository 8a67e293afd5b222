// How the level maps become one: levels of one group are summed with their weights, then
//   product: the product over groups;  sum: the sum;  mean: the sum divided by the sum of all weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "combined_pixel.h"
#include "macros.h"

namespace stadfast {

enum class Mode : int32_t { kProduct, kSum };

// The levels sorted by group, with everything that `mean` needs folded into the weights.
struct Plan {
  Mode mode;
  int32_t levels;
  int32_t order[kMaxLevels];  // position -> level
  int32_t group[kMaxLevels];  // by position
  double weight[kMaxLevels];  // by position
  bool opens(int32_t i) const { return i == 0 || group[i] != group[i - 1]; }
  bool closes(int32_t i) const { return i + 1 == levels || group[i] != group[i + 1]; }
};

inline Plan make_plan(const std::string& combine, const std::vector<int64_t>& groups,
                      const std::vector<double>& weights, int64_t levels) {
  SF_CHECK(levels >= 1 && levels <= kMaxLevels, "expected 1 to ", kMaxLevels, " levels, got ", levels);
  SF_CHECK(int64_t(groups.size()) == levels, "groups: expected one per level (", levels, "), got ", groups.size());
  SF_CHECK(int64_t(weights.size()) == levels, "weights: expected one per level (", levels, "), got ", weights.size());
  SF_CHECK(combine == "product" || combine == "sum" || combine == "mean",
           "combine: expected product, sum or mean, got ", combine);
  Plan plan{combine == "product" ? Mode::kProduct : Mode::kSum, int32_t(levels), {}, {}, {}};
  double total = 0;
  for (double weight : weights) total += weight;
  SF_CHECK(combine != "mean" || total != 0, "weights: a mean needs a sum that is not zero");
  int32_t position = 0;
  for (int64_t group = 0; position < levels; ++group) {
    SF_CHECK(group < levels, "groups: expected the numbers 0, 1, ... without a gap");
    const int32_t first = position;
    for (int64_t level = 0; level < levels; ++level) {
      if (groups[level] != group) continue;
      plan.order[position] = int32_t(level);
      plan.group[position] = int32_t(group);
      plan.weight[position] = combine == "mean" ? weights[level] / total : weights[level];
      ++position;
    }
    SF_CHECK(position > first, "groups: expected the numbers 0, 1, ... without a gap");
  }
  return plan;
}

}  // namespace stadfast
