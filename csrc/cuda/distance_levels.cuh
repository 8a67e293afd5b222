// How each level is cut into tiles: the host's side of distance_kernel.cuh; no torch here.
#pragma once

#include "distance_kernel.cuh"

namespace stadfast::cuda {

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
  const bool vectors = takes_vectors<T>(student, channels) && takes_vectors<T>(teacher, channels) &&
                       takes_vectors<T>(gradient, channels);
  const Tiling tiling = make_tiling<T>(channels_last, vectors, channels);
  level.access = tiling.access;
  level.shift = tiling.shift;
  all->tiles += divide_up(all->images * pixels, tiling.pixels);
  level.end_tile = all->tiles;
}

}  // namespace stadfast::cuda
