// Combination and upsampling of the level maps in one launch; no torch here.
#pragma once

#include "../combined_pixel.h"
#include "kernel.cuh"

namespace stadfast::cuda {

constexpr int kCombineThreads = 128;

// A thread computes the 16 bytes of `out` (images x height x width) that it stores at once. `out` is aligned so.
template <class A>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(const __grid_constant__ Combination<A> c, A* out) {
  constexpr int kCount = kVector<A>;
  const int64_t packs = (int64_t(c.width) + kCount - 1) / kCount;  // of a row
  const int64_t total = c.images * c.height * packs;
  const int64_t stride = int64_t(gridDim.x) * kCombineThreads;
  for (int64_t i = int64_t(blockIdx.x) * kCombineThreads + threadIdx.x; i < total; i += stride) {
    const Quotient row = divide(i, packs), image = divide(row.quotient, c.height);
    const int32_t y = int32_t(image.remainder), x = int32_t(row.remainder) * kCount;
    Pack<A, kCount> pixels;
    combined_pixels<kCount>(c, image.quotient, y, x, pixels.value);
    A* to = out + row.quotient * c.width + x;
    if (c.width % kCount == 0) {
      store<A, kCount>(to, pixels);
    } else {
      SF_UNROLL for (int k = 0; k < kCount; ++k) if (k < c.width - x) to[k] = pixels.value[k];
    }
  }
}

}  // namespace stadfast::cuda
