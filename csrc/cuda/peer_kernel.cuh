// Distances of up to kPeerPairs pairs of descriptors in one launch, and the gradient of one descriptor; no torch here.
//
// The descriptors of a tile (tile.cuh) are read once from memory: what several pairs need comes from L1. No sum
// depends on the number of blocks or images.
#pragma once

#include <cmath>

#include "tile.cuh"

namespace stadfast::cuda {

constexpr int kPeerPairs = 16;   // of a launch: their sums live in registers
constexpr int kPeerEdges = 128;  // of a launch for a descriptor's gradient: they travel by value

template <class T>
struct PeerView {
  const T* data;  // images x channels x pixels; strides as View
  int64_t batch_stride, inner_stride;
};

template <class T, class A>
struct PeerDistances {
  int64_t images, pixels, tiles;
  int32_t channels, pairs, maps;
  Access access;
  int32_t shift;
  bool squared;
  A* out;  // images x maps x pixels; the launch adds to it
  PeerView<T> first[kPeerPairs], second[kPeerPairs];
  A weight[kPeerPairs];
  int32_t map[kPeerPairs];  // rising
};

// Adds the pairs' distances at one pixel to their maps; `sum(k)` is the squared distance of pair k.
template <class T, class A, class F>
__device__ __forceinline__ void add_to_maps(const PeerDistances<T, A>& all, const Quotient& at, const F& sum) {
  A* out = all.out + at.quotient * all.maps * all.pixels + at.remainder;
  A total = 0;
  SF_UNROLL for (int k = 0; k < kPeerPairs; ++k) {
    if (k >= all.pairs) break;
    const A square = sum(k);
    total += all.weight[k] * (all.squared ? square : A(std::sqrt(square)));
    if (k + 1 < all.pairs && all.map[k + 1] == all.map[k]) continue;
    out[all.map[k] * all.pixels] += total;
    total = 0;
  }
}

// The pixel of one thread: (image, position); `inside` is false beyond the last one.
template <class T, class A>
__device__ __forceinline__ Quotient peer_pixel(const PeerDistances<T, A>& all, int64_t index, bool* inside) {
  *inside = index < all.images * all.pixels;
  return divide(*inside ? index : 0, all.pixels);
}

template <class T, class A, int kCount>
__device__ __forceinline__ void peers_channels_last(const PeerDistances<T, A>& all, int64_t tile) {
  bool inside;
  const int lane = int(threadIdx.x) & ((1 << all.shift) - 1);
  const Quotient at = peer_pixel(all, tile * (kThreads >> all.shift) + (int(threadIdx.x) >> all.shift), &inside);
  A sums[kPeerPairs] = {};
  for (int c = lane * kCount; inside && c < all.channels; c += kCount << all.shift) {
    SF_UNROLL for (int k = 0; k < kPeerPairs; ++k) {
      if (k >= all.pairs) break;
      const PeerView<T>&x = all.first[k], &y = all.second[k];
      const Pack<T, kCount> a =
          load<T, kCount>(x.data + at.quotient * x.batch_stride + at.remainder * x.inner_stride + c);
      const Pack<T, kCount> b =
          load<T, kCount>(y.data + at.quotient * y.batch_stride + at.remainder * y.inner_stride + c);
      SF_UNROLL for (int i = 0; i < kCount; ++i) {
        const A e = A(a.value[i]) - A(b.value[i]);
        sums[k] += e * e;
      }
    }
  }
  SF_UNROLL for (int k = 0; k < kPeerPairs; ++k) sums[k] = sum_lanes(sums[k], all.shift);
  if (inside && lane == 0) add_to_maps(all, at, [&](int k) { return sums[k]; });
}

template <class T, class A>
__device__ __forceinline__ void peers_planar(const PeerDistances<T, A>& all, int64_t tile) {
  __shared__ A partial[kPeerPairs * kThreads];
  bool inside;
  const int thread = int(threadIdx.x);
  const int lane = thread & ((1 << all.shift) - 1), slice = thread >> all.shift, slices = kThreads >> all.shift;
  const Quotient at = peer_pixel(all, (tile << all.shift) + lane, &inside);
  A sums[kPeerPairs] = {};
  for (int c = slice; inside && c < all.channels; c += slices) {
    SF_UNROLL for (int k = 0; k < kPeerPairs; ++k) {
      if (k >= all.pairs) break;
      const PeerView<T>&x = all.first[k], &y = all.second[k];
      const A e = A(load_one(x.data + at.quotient * x.batch_stride + c * x.inner_stride + at.remainder)) -
                  A(load_one(y.data + at.quotient * y.batch_stride + c * y.inner_stride + at.remainder));
      sums[k] += e * e;
    }
  }
  SF_UNROLL for (int k = 0; k < kPeerPairs; ++k) partial[k * kThreads + thread] = sums[k];
  __syncthreads();
  if (inside && slice == 0)
    add_to_maps(all, at, [&](int k) { return sum_slices(partial + k * kThreads, lane, all.shift); });
  __syncthreads();  // before the next tile writes
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads) peer_kernel(const __grid_constant__ PeerDistances<T, A> all) {
  for (int64_t tile = blockIdx.x; tile < all.tiles; tile += gridDim.x) {
    if (all.access == Access::kPlanar)
      peers_planar<T, A>(all, tile);
    else if (all.access == Access::kVectors)
      peers_channels_last<T, A, kVector<T>>(all, tile);
    else
      peers_channels_last<T, A, 1>(all, tile);
  }
}

// gradient = sum over the edges of factor * (self - other), or += it
template <class T, class A>
struct PeerGradient {
  int64_t images, pixels;
  int32_t channels, pairs, edges;
  Access access;
  bool add;          // to what is there, which each launch rounds to T
  const A* factors;  // images x pairs x pixels
  T* gradient;       // laid out as the others
  int64_t gradient_batch, gradient_inner;
  PeerView<T> self;
  PeerView<T> other[kPeerEdges];
  int32_t factor[kPeerEdges];
};

// One thread computes kCount neighbouring channels (planar: one) of one pixel; neighbours in memory are neighbours
// among the threads.
template <class T, class A, int kCount>
__device__ __forceinline__ void peer_gradient_at(const PeerGradient<T, A>& all, int64_t index) {
  const bool planar = all.access == Access::kPlanar;
  const int64_t packs = all.channels / kCount;
  const Quotient inner = divide(index, planar ? all.pixels : packs);
  const Quotient outer = divide(inner.quotient, planar ? packs : all.pixels);
  const int64_t image = outer.quotient, pixel = planar ? inner.remainder : outer.remainder;
  const int64_t channel = (planar ? outer.remainder : inner.remainder) * kCount;
  const int64_t along = planar ? channel : pixel, across = planar ? pixel : channel;
  const Pack<T, kCount> a =
      load<T, kCount>(all.self.data + image * all.self.batch_stride + along * all.self.inner_stride + across);
  T* to = all.gradient + image * all.gradient_batch + along * all.gradient_inner + across;
  A sums[kCount];
  SF_UNROLL for (int i = 0; i < kCount; ++i) sums[i] = all.add ? A(to[i]) : A(0);
  for (int e = 0; e < all.edges; ++e) {
    const PeerView<T>& y = all.other[e];
    const A factor = load_one(all.factors + (image * all.pairs + all.factor[e]) * all.pixels + pixel);
    const Pack<T, kCount> b = load<T, kCount>(y.data + image * y.batch_stride + along * y.inner_stride + across);
    SF_UNROLL for (int i = 0; i < kCount; ++i) sums[i] += factor * (A(a.value[i]) - A(b.value[i]));
  }
  Pack<T, kCount> g;
  SF_UNROLL for (int i = 0; i < kCount; ++i) g.value[i] = T(sums[i]);
  store<T, kCount>(to, g);
}

template <class T, class A>
__global__ void __launch_bounds__(kThreads) peer_gradient_kernel(const __grid_constant__ PeerGradient<T, A> all) {
  const bool vectors = all.access == Access::kVectors;
  const int64_t packs = all.images * all.pixels * (vectors ? all.channels / kVector<T> : all.channels);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += int64_t(gridDim.x) * kThreads) {
    if (vectors)
      peer_gradient_at<T, A, kVector<T>>(all, i);
    else
      peer_gradient_at<T, A, 1>(all, i);
  }
}

}  // namespace stadfast::cuda
