// What peer_distance and its gradient take: descriptors of one shape and the pairs among them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "check.h"
#include "layout.h"

namespace stadfast {

// N descriptors (B, C, H, W), all laid out as the first one; a tensor in another layout is copied.
struct Peers {
  std::vector<Tensor> tensors;
  std::vector<Layout> layouts;

  const Layout& layout() const { return layouts[0]; }
  bool channels_last() const { return layouts[0].channels_last(); }
  // From channel to channel (planar) or from pixel to pixel (channels_last); the other stride is 1.
  int64_t inner_stride(size_t i) const { return channels_last() ? layouts[i].pixel_stride : layouts[i].channel_stride; }
};

inline Peers readable_peers(const std::vector<Tensor>& descriptors) {
  SF_CHECK(!descriptors.empty(), "descriptors: expected at least one");
  const Tensor& first = descriptors[0];
  SF_CHECK(first.dim() == 4, "descriptors[0]: expected 4 dimensions (B, C, H, W), got ", first.dim());
  for (int d = 1; d < 4; ++d)
    SF_CHECK(first.size(d) > 0 && first.size(d) < kMaxExtent, "descriptors[0]: empty or too large");
  Peers peers;
  for (size_t i = 0; i < descriptors.size(); ++i) {
    const Tensor& x = descriptors[i];
    SF_CHECK(same_shape(x, first), "descriptors[", i, "]: shapes differ");
    SF_CHECK(x.scalar_type() == first.scalar_type(), "descriptors[", i, "]: dtypes differ");
    SF_CHECK(same_device(x, first), "descriptors[", i, "]: devices differ");
    Pair pair = readable_pair(i == 0 ? x : peers.tensors[0], x);
    peers.tensors.push_back(pair.teacher);
    peers.layouts.push_back(pair.t);
  }
  return peers;
}

// A gradient, laid out as the descriptors were read.
inline Tensor empty_like_peer(const Peers& peers) {
  return empty_like_student({peers.tensors[0], peers.tensors[0], peers.layout(), peers.layout()});
}

// The distance of two descriptors, which counts `weight` times towards its group.
struct PeerPair {
  int32_t first, second, group;
  double weight;
  auto key() const { return std::tie(group, first, second); }
};

inline void check_pairs(const std::vector<int64_t>& pairs, size_t descriptors) {
  SF_CHECK(!pairs.empty() && pairs.size() % 2 == 0, "pairs: expected two numbers a pair, and at least one pair");
  for (int64_t i : pairs)
    SF_CHECK(i >= 0 && i < int64_t(descriptors), "pairs: expected numbers of descriptors (0 to ", descriptors - 1,
             "), got ", i);
}

// The pairs sorted by group; (i, j) and (j, i) have one distance and become one pair of twice the weight.
inline std::vector<PeerPair> merge_pairs(const std::vector<int64_t>& pairs, const std::vector<int64_t>& groups,
                                         size_t descriptors) {
  check_pairs(pairs, descriptors);
  const size_t count = pairs.size() / 2;
  SF_CHECK(groups.size() == count, "groups: expected one per pair (", count, "), got ", groups.size());
  std::vector<PeerPair> sorted;
  for (size_t p = 0; p < count; ++p) {
    SF_CHECK(groups[p] >= 0 && groups[p] < int64_t(count), "groups: expected the numbers 0, 1, ... without a gap");
    const auto [first, second] = std::minmax(pairs[2 * p], pairs[2 * p + 1]);
    sorted.push_back({int32_t(first), int32_t(second), int32_t(groups[p]), 1.0});
  }
  std::sort(sorted.begin(), sorted.end(), [](const PeerPair& a, const PeerPair& b) { return a.key() < b.key(); });
  std::vector<PeerPair> merged;
  for (const PeerPair& pair : sorted) {
    const int32_t before = merged.empty() ? -1 : merged.back().group;
    SF_CHECK(pair.group - before <= 1, "groups: expected the numbers 0, 1, ... without a gap");
    if (!merged.empty() && merged.back().key() == pair.key())
      merged.back().weight += 1;
    else
      merged.push_back(pair);
  }
  return merged;
}

// Who takes part in the gradient of one descriptor: pair `factor` of the call joins it with `other`.
struct PeerEdge {
  int32_t factor, other;
};

// One list of edges for each wanted descriptor.
inline std::vector<std::vector<PeerEdge>> edges_of(const std::vector<int64_t>& wanted,
                                                   const std::vector<int64_t>& pairs, size_t descriptors) {
  check_pairs(pairs, descriptors);
  std::vector<std::vector<PeerEdge>> edges(wanted.size());
  for (size_t w = 0; w < wanted.size(); ++w) {
    SF_CHECK(wanted[w] >= 0 && wanted[w] < int64_t(descriptors), "wanted: expected numbers of descriptors (0 to ",
             descriptors - 1, "), got ", wanted[w]);
    for (size_t p = 0; p < pairs.size() / 2; ++p) {
      const int64_t i = pairs[2 * p], j = pairs[2 * p + 1];
      if (i == wanted[w]) edges[w].push_back({int32_t(p), int32_t(j)});
      if (j == wanted[w]) edges[w].push_back({int32_t(p), int32_t(i)});
    }
  }
  return edges;
}

// factors: (B, P, H, W), float32 (float64 for float64 descriptors), one map for each pair.
inline void check_factors(const Tensor& factors, const Peers& peers, size_t pairs) {
  const Layout& x = peers.layout();
  SF_CHECK(factors.dim() == 4 && factors.size(0) == x.batch && factors.size(1) == int64_t(pairs) &&
               factors.size(2) == x.height && factors.size(3) == x.width &&
               factors.scalar_type() == map_dtype(peers.tensors[0]) && same_device(factors, peers.tensors[0]),
           "factors: expected a map of each pair");
}

}  // namespace stadfast
