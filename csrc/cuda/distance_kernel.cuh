// The channel-normalised distance of all levels in one launch, and its gradient; no torch here.
//
// A block works on tiles (tile.cuh) of one level's pixels, image after image.
// Norms first, then the differences: the second pass over a tile reads from L1. No sum depends on the number of
// blocks or images.
#pragma once

#include "../combined_pixel.h"
#include "../distance.h"
#include "tile.cuh"

namespace stadfast::cuda {

// One level. "Batch" strides lead from image to image, "inner" ones from pixel to pixel (channels_last) or from
// channel to channel (planar), in elements; the other stride is 1.
template <class T, class A>
struct DistanceLevel {
  const T *student, *teacher;  // images x channels x pixels
  T* gradient;                 // backward: of the student, as it is laid out
  A* map;                      // images x pixels: the distance, or (backward, only read) the gradient that arrives
  int64_t student_batch, teacher_batch, gradient_batch;
  int64_t student_inner, teacher_inner, gradient_inner;
  int64_t pixels;    // of an image
  int64_t end_tile;  // the first tile of the next level
  int32_t channels;
  Access access;
  int32_t shift;
};

template <class T, class A>
struct DistanceLevels {
  int64_t images, tiles;
  A eps;
  DistanceLevel<T, A> level[kMaxLevels];
};

// The pixel of one thread; threads beyond the last pixel have no channels, but take part in the sums.
template <class T, class A>
struct Pixel {
  const T *student, *teacher;
  int64_t index, image, position;
  int32_t channels;
};

template <class T, class A>
__device__ __forceinline__ Pixel<T, A> find_pixel(const DistanceLevel<T, A>& level, int64_t images, int64_t index) {
  const bool inside = index < images * level.pixels;
  const Quotient at = divide(inside ? index : 0, level.pixels);
  const int64_t step = level.access == Access::kPlanar ? 1 : level.student_inner;
  const int64_t teacher_step = level.access == Access::kPlanar ? 1 : level.teacher_inner;
  return {level.student + at.quotient * level.student_batch + at.remainder * step,
          level.teacher + at.quotient * level.teacher_batch + at.remainder * teacher_step,
          index,
          at.quotient,
          at.remainder,
          inside ? level.channels : 0};
}

template <class T, class A, int kCount, bool kBackward>
__device__ __forceinline__ void channels_last_tile(const DistanceLevel<T, A>& level, int64_t images, int64_t tile,
                                                   A eps) {
  const int shift = level.shift;
  const Pixel<T, A> pixel = find_pixel(level, images, tile * (kThreads >> shift) + (int(threadIdx.x) >> shift));
  const int lane = int(threadIdx.x) & ((1 << shift) - 1);
  const int first = lane * kCount, step = kCount << shift;
  A ss = 0, tt = 0;
  for (int c = first; c < pixel.channels; c += step) {
    const Pack<T, kCount> s = load<T, kCount>(pixel.student + c), t = load<T, kCount>(pixel.teacher + c);
    SF_UNROLL for (int i = 0; i < kCount; ++i) {
      const A a = A(s.value[i]), b = A(t.value[i]);
      ss += a * a;
      tt += b * b;
    }
  }
  const A is = inverse_norm(sum_lanes(ss, shift), eps), it = inverse_norm(sum_lanes(tt, shift), eps);
  A sum = 0;  // forward: of e^2; backward: along
  for (int c = first; c < pixel.channels; c += step) {
    const Pack<T, kCount> s = load<T, kCount>(pixel.student + c), t = load<T, kCount>(pixel.teacher + c);
    SF_UNROLL for (int i = 0; i < kCount; ++i) {
      const A a = A(s.value[i]), b = A(t.value[i]);
      if constexpr (kBackward) {
        sum += along_term(a, is, b, it);
      } else {
        const A e = normalised_difference(a, is, b, it);
        sum += e * e;
      }
    }
  }
  sum = sum_lanes(sum, shift);
  if (pixel.channels == 0) return;
  if constexpr (kBackward) {
    const A along = sum * projection_gain(is, eps), factor = A(2) * is * level.map[pixel.index];
    T* gradient = level.gradient + pixel.image * level.gradient_batch + pixel.position * level.gradient_inner;
    for (int c = first; c < pixel.channels; c += step) {
      const Pack<T, kCount> s = load<T, kCount>(pixel.student + c), t = load<T, kCount>(pixel.teacher + c);
      Pack<T, kCount> g;
      SF_UNROLL for (int i = 0; i < kCount; ++i) g.value[i] =
          T(gradient_term(A(s.value[i]), is, A(t.value[i]), it, along, factor));
      store<T, kCount>(gradient + c, g);
    }
  } else if (lane == 0) {
    level.map[pixel.index] = sum;
  }
}

template <class T, class A, bool kBackward>
__device__ __forceinline__ void planar_tile(const DistanceLevel<T, A>& level, int64_t images, int64_t tile, A eps) {
  // Three arrays, so that two barriers a tile suffice: none is written again before all have read it.
  __shared__ A partial_s[kThreads], partial_t[kThreads], partial_sum[kThreads];
  const int thread = int(threadIdx.x), shift = level.shift;
  const int lane = thread & ((1 << shift) - 1), slice = thread >> shift, slices = kThreads >> shift;
  const Pixel<T, A> pixel = find_pixel(level, images, (tile << shift) + lane);
  A ss = 0, tt = 0;
#pragma unroll 4
  for (int c = slice; c < pixel.channels; c += slices) {
    const A a = A(load_one(pixel.student + c * level.student_inner));
    const A b = A(load_one(pixel.teacher + c * level.teacher_inner));
    ss += a * a;
    tt += b * b;
  }
  partial_s[thread] = ss;
  partial_t[thread] = tt;
  __syncthreads();
  const A is = inverse_norm(sum_slices(partial_s, lane, shift), eps);
  const A it = inverse_norm(sum_slices(partial_t, lane, shift), eps);
  A sum = 0;  // forward: of e^2; backward: along
#pragma unroll 4
  for (int c = slice; c < pixel.channels; c += slices) {
    const A a = A(load_one(pixel.student + c * level.student_inner));
    const A b = A(load_one(pixel.teacher + c * level.teacher_inner));
    if constexpr (kBackward) {
      sum += along_term(a, is, b, it);
    } else {
      const A e = normalised_difference(a, is, b, it);
      sum += e * e;
    }
  }
  partial_sum[thread] = sum;
  __syncthreads();
  if (pixel.channels == 0) return;
  if constexpr (kBackward) {
    const A along = sum_slices(partial_sum, lane, shift) * projection_gain(is, eps);
    const A factor = A(2) * is * level.map[pixel.index];
    T* gradient = level.gradient + pixel.image * level.gradient_batch + pixel.position;
#pragma unroll 4
    for (int c = slice; c < pixel.channels; c += slices) {
      const A a = A(load_one(pixel.student + c * level.student_inner));
      const A b = A(load_one(pixel.teacher + c * level.teacher_inner));
      gradient[c * level.gradient_inner] = T(gradient_term(a, is, b, it, along, factor));
    }
  } else if (slice == 0) {
    level.map[pixel.index] = sum_slices(partial_sum, lane, shift);
  }
}

template <class T, class A, bool kBackward>
__global__ void __launch_bounds__(kThreads) distance_kernel(const __grid_constant__ DistanceLevels<T, A> all) {
  for (int64_t tile = blockIdx.x; tile < all.tiles; tile += gridDim.x) {
    int l = 0;
    while (tile >= all.level[l].end_tile) ++l;
    const DistanceLevel<T, A>& level = all.level[l];
    const int64_t local = l == 0 ? tile : tile - all.level[l - 1].end_tile;
    if (level.access == Access::kPlanar)
      planar_tile<T, A, kBackward>(level, all.images, local, all.eps);
    else if (level.access == Access::kVectors)
      channels_last_tile<T, A, kVector<T>, kBackward>(level, all.images, local, all.eps);
    else
      channels_last_tile<T, A, 1, kBackward>(level, all.images, local, all.eps);
  }
}

}  // namespace stadfast::cuda
