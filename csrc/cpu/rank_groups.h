// Many edges in groups of neighbours, each with a table of its own that fits the cache: keys are collected by group
// and looked up together. A table over all edges would miss the cache with nearly every key.
#pragma once

#include <algorithm>
#include <vector>

#include "../rank_table.h"

namespace stadfast::cpu {

template <class K>
class RankGroups {
 public:
  // edges: keys, rising, not empty; they are not copied.
  explicit RankGroups(const std::vector<K>& edges) : low_(edges.front()) {
    const int64_t n = int64_t(edges.size());
    while (((edges.back() - low_) >> width_) >= kBins) ++width_;
    group_of_.resize(bin_of(edges.back()) + 1);
    std::vector<int64_t> start{0};  // a group's first edge: groups end where bins do
    for (int64_t edge = 0, bin = 0; bin < int64_t(group_of_.size()); ++bin) {
      const bool full = n > 4 * kEdges && edge - start.back() >= kEdges;
      if (full && int64_t(bin_of(edges[edge])) == bin) start.push_back(edge);  // empty bins belong to the lower group
      group_of_[bin] = uint16_t(start.size() - 1);
      while (edge < n && int64_t(bin_of(edges[edge])) == bin) ++edge;
    }
    start.push_back(n);
    first_.resize(start.size() - 1);
    for (size_t g = 0; g < first_.size(); ++g) add_table(edges, start[g], start[g + 1], &first_[g]);
  }

  const std::vector<RankTable<K>>& tables() const { return tables_; }

  // The table to ask for a key from the first edge to the last.
  size_t group_of(K key) const { return group_of_[bin_of(key)]; }

 private:
  static constexpr int64_t kEdges = 1 << 15;  // of a group, at least
  static constexpr K kBins = 4096;

  size_t bin_of(K key) const { return size_t((key - low_) >> width_); }

  void add_table(const std::vector<K>& edges, int64_t begin, int64_t end, std::vector<int32_t>* first) {
    const K low = begin == 0 ? low_ : ((edges[begin] - low_) >> width_ << width_) + low_;
    const K high = end == int64_t(edges.size()) ? edges.back() : ((edges[end] - low_) >> width_ << width_) + low_ - 1;
    RankTable<K> table{edges.data(), nullptr, int64_t(edges.size()), low, high, cell_shift(low, high, end - begin)};
    first->resize(table.cells() + 1);
    for (int64_t i = begin; i < end; ++i) ++(*first)[table.cell(edges[i]) + 1];
    (*first)[0] = int32_t(begin);
    for (size_t i = 1; i < first->size(); ++i) (*first)[i] += (*first)[i - 1];
    table.first = first->data();
    tables_.push_back(table);
  }

  K low_;
  int32_t width_ = 0;  // keys of one bin agree in (key - low) >> width
  std::vector<uint16_t> group_of_;
  std::vector<std::vector<int32_t>> first_;
  std::vector<RankTable<K>> tables_;
};

}  // namespace stadfast::cpu
