// How pairs become launches: the host's side of peer_kernel.cuh; no torch here.
#pragma once

#include <algorithm>
#include <vector>

#include "peer_kernel.cuh"

namespace stadfast::cuda {

// What all descriptors of a call share.
struct PeerShape {
  int64_t images, channels, pixels;
  bool channels_last;
};

template <class T>
PeerView<T> peer_view(const View& view) {
  return {static_cast<const T*>(view.data), view.batch_stride, view.inner_stride};
}

template <class T>
bool all_take_vectors(const PeerShape& shape, const std::vector<View>& views) {
  return shape.channels_last &&
         std::all_of(views.begin(), views.end(), [&](const View& v) { return takes_vectors<T>(v, shape.channels); });
}

// One structure a launch, kPeerPairs pairs each. Pair: {first, second, group, weight}, sorted by group.
template <class T, class A, class Pair>
std::vector<PeerDistances<T, A>> peer_launches(const PeerShape& shape, const std::vector<View>& views,
                                               const std::vector<Pair>& pairs, bool squared, A* out) {
  const Tiling tiling = make_tiling<T>(shape.channels_last, all_take_vectors<T>(shape, views), shape.channels);
  std::vector<PeerDistances<T, A>> launches;
  for (size_t begin = 0; begin < pairs.size(); begin += kPeerPairs) {
    PeerDistances<T, A> all{};
    all.images = shape.images, all.pixels = shape.pixels;
    all.tiles = divide_up(shape.images * shape.pixels, tiling.pixels);
    all.channels = int32_t(shape.channels);
    all.pairs = int32_t(std::min<size_t>(kPeerPairs, pairs.size() - begin));
    all.maps = pairs.back().group + 1;
    all.access = tiling.access, all.shift = tiling.shift, all.squared = squared, all.out = out;
    for (int32_t k = 0; k < all.pairs; ++k) {
      const Pair& pair = pairs[begin + k];
      all.first[k] = peer_view<T>(views[pair.first]), all.second[k] = peer_view<T>(views[pair.second]);
      all.weight[k] = A(pair.weight), all.map[k] = pair.group;
    }
    launches.push_back(all);
  }
  return launches;
}

// One structure a launch, kPeerEdges edges each. Edge: {factor, other}. Without edges, one launch of zeros.
template <class T, class A, class Edge>
std::vector<PeerGradient<T, A>> peer_gradient_launches(const PeerShape& shape, const std::vector<View>& views,
                                                       int64_t self, const std::vector<Edge>& edges, const A* factors,
                                                       int64_t pairs, const View& gradient) {
  const bool vectors = all_take_vectors<T>(shape, views) && takes_vectors<T>(gradient, shape.channels);
  std::vector<PeerGradient<T, A>> launches;
  size_t begin = 0;
  do {
    PeerGradient<T, A> all{};
    all.images = shape.images, all.pixels = shape.pixels, all.channels = int32_t(shape.channels);
    all.pairs = int32_t(pairs), all.edges = int32_t(std::min<size_t>(kPeerEdges, edges.size() - begin));
    all.access = !shape.channels_last ? Access::kPlanar : vectors ? Access::kVectors : Access::kScalars;
    all.add = begin > 0;
    all.factors = factors;
    all.gradient = static_cast<T*>(const_cast<void*>(gradient.data));
    all.gradient_batch = gradient.batch_stride, all.gradient_inner = gradient.inner_stride;
    all.self = peer_view<T>(views[self]);
    for (int32_t e = 0; e < all.edges; ++e) {
      const Edge& edge = edges[begin + e];
      all.other[e] = peer_view<T>(views[edge.other]), all.factor[e] = edge.factor;
    }
    launches.push_back(all);
    begin += kPeerEdges;
  } while (begin < edges.size());
  return launches;
}

}  // namespace stadfast::cuda
