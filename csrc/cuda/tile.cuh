// How a block of threads shares pixels and their channels, for every kernel that reduces over channels:
//   channels_last  2^shift neighbouring lanes share a pixel and take its channels in turns (16 bytes each where the
//                  alignment allows), sums by shuffles;
//   planar         2^shift neighbouring threads take one pixel each, so that loads are coalesced, and the block's
//                  slices take the channels in turns, sums through shared memory.
#pragma once

#include "kernel.cuh"

namespace stadfast::cuda {

enum class Access : int32_t { kPlanar, kScalars, kVectors };

// Strides in elements: from image to image, and from pixel to pixel (channels_last) or channel to channel (planar).
struct View {
  const void* data;
  int64_t batch_stride, inner_stride;
};

// Whether every pixel of a channels_last view is a whole number of aligned 16-byte vectors.
template <class T>
bool takes_vectors(const View& view, int64_t channels) {
  constexpr int64_t n = kVector<T>;
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && channels % n == 0 && view.batch_stride % n == 0 &&
         view.inner_stride % n == 0;
}

// The logarithm of the smallest power of two of lanes that covers `packs`, at most a warp.
inline int lane_shift(int64_t packs) {
  int shift = 0;
  while ((1 << shift) < kWarp && (int64_t(1) << shift) < packs) ++shift;
  return shift;
}

constexpr int64_t kManyChannels = 256;  // planar: from here on half the pixels and twice the slices to a block

struct Tiling {
  Access access;
  int32_t shift;
  int64_t pixels;  // of a tile
};

template <class T>
Tiling make_tiling(bool channels_last, bool vectors, int64_t channels) {
  if (!channels_last) {
    const int32_t shift = channels < kManyChannels ? 5 : 4;
    return {Access::kPlanar, shift, int64_t(1) << shift};
  }
  const int32_t shift = lane_shift(vectors ? channels / kVector<T> : channels);
  return {vectors ? Access::kVectors : Access::kScalars, shift, int64_t(kThreads >> shift)};
}

// The sum over 2^shift neighbouring lanes, in every one of them.
template <class A>
__device__ __forceinline__ A sum_lanes(A value, int shift) {
  for (int offset = (1 << shift) >> 1; offset > 0; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// A block's partial sums, slice by slice: [slice << shift | lane].
template <class A>
__device__ __forceinline__ A sum_slices(const A* partial, int lane, int shift) {
  A sum = 0;
  for (int i = lane; i < kThreads; i += 1 << shift) sum += partial[i];
  return sum;
}

}  // namespace stadfast::cuda
