// How each level is cut into tiles: the host's side of distance_kernel.cuh; no torch here.
#pragma once

#include "distance_kernel.cuh"

namespace stadfast::cuda {

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

// Level l, after the levels before it. `gradient` is empty for the distance; `map`: see DistanceLevel.
template <class T, class A>
void add_level(DistanceLevels<T, A>* all, int l, bool channels_last, int64_t channels, int64_t pixels,
               const View& student, const View& teacher, const View& gradient, void* map) {
  DistanceLevel<T, A>& level = all->level[l];
  level.student = static_cast<const T*>(student.data);
  level.teacher = static_cast<const T*>(teacher.data);
  level.gradient = static_cast<T*>(const_cast<void*>(gradient.data));
  level.map = static_cast<A*>(map);
  level.student_batch = student.batch_stride, level.student_inner = student.inner_stride;
  level.teacher_batch = teacher.batch_stride, level.teacher_inner = teacher.inner_stride;
  level.gradient_batch = gradient.batch_stride, level.gradient_inner = gradient.inner_stride;
  level.pixels = pixels;
  level.channels = int32_t(channels);
  int64_t tile = 0;  // pixels
  if (channels_last) {
    const bool vectors = takes_vectors<T>(student, channels) && takes_vectors<T>(teacher, channels) &&
                         takes_vectors<T>(gradient, channels);
    level.access = vectors ? Access::kVectors : Access::kScalars;
    level.shift = lane_shift(vectors ? channels / kVector<T> : channels);
    tile = kThreads >> level.shift;
  } else {
    level.access = Access::kPlanar;
    level.shift = channels < kManyChannels ? 5 : 4;
    tile = 1 << level.shift;
  }
  all->tiles += divide_up(all->images * pixels, tile);
  level.end_tile = all->tiles;
}

}  // namespace stadfast::cuda
