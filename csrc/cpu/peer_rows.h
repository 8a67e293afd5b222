// Leaf loops of peer_distance on the CPU: a block of consecutive pixels of one image, all descriptors at once.
#pragma once

#include <cstdint>
#include <vector>

#include "../peers.h"

namespace stadfast::cpu {

constexpr int64_t kPeerBlock = 512;     // pixels: long rows for the memory, sums that stay in L2
constexpr int64_t kPeerChannels = 512;  // of a pixel that are widened at once, where channels are neighbours

// One descriptor from the block's first pixel on; strides as in Peers.
template <class T>
struct PeerView {
  const T* data;
  int64_t stride;
};

// Memory that one thread keeps from block to block.
template <class A>
struct PeerScratch {
  std::vector<A> wide;         // rows of half types, widened once for all pairs
  std::vector<const A*> rows;  // the rows, wherever they lie
  std::vector<A> sums;         // by pair
};

// The shape of a block, the same for every descriptor.
struct PeerBlock {
  bool channels_last;
  int64_t channels, pixels;
};

// scratch.sums[k * kPeerBlock + p] = squared distance of pair k at pixel p of the block.
template <class T, class A>
void peer_sums(const PeerBlock& block, const std::vector<PeerView<T>>& descriptors, const std::vector<PeerPair>& pairs,
               PeerScratch<A>& scratch);

// maps[group * stride + p] = sum over the group's pairs of weight * distance (its square, if `squared`).
template <class A>
void peer_groups(const PeerScratch<A>& scratch, const std::vector<PeerPair>& pairs, bool squared, int64_t pixels,
                 int64_t stride, A* maps);

// gradient = sum over edges e of factors[e.factor * factor_stride + p] * (self - other), written with its own stride.
template <class T, class A>
void peer_gradient(const PeerBlock& block, const std::vector<PeerView<T>>& descriptors, int64_t self,
                   const std::vector<PeerEdge>& edges, const A* factors, int64_t factor_stride, PeerScratch<A>& scratch,
                   T* gradient, int64_t gradient_stride);

}  // namespace stadfast::cpu
