// 8-connected labels of (images, height, width) masks by union-find (Playne and Hawick, 2018), in six launches:
//   init      every row segment of 32 pixels: a set pixel's label is the start of its run within the segment
//   unite     runs that touch, by atomicMin on their roots: integers, so that any order gives the same result
//   flatten   every pixel's label is its region's first pixel; counts the roots of each tile
//   scan      the roots before each tile, and each image's regions
//   number    the root of a region learns the region's number
//   finish    every pixel takes its root's number
// A label is 0 outside, else 1 + the index, within the image, of an earlier pixel of the region (or of itself).
#pragma once

#include "kernel.cuh"

namespace stadfast::cuda {

constexpr int kTile = 4096;  // pixels of an image whose roots are numbered by one block

struct LabelImages {
  const uint8_t* masks;
  int32_t* labels;
  int32_t* tile_roots;  // images x tiles
  int64_t* counts;      // images
  int64_t images, height, width, tiles;

  __device__ int64_t pixels() const { return height * width; }
  __device__ int64_t segments() const { return (width + kWarp - 1) / kWarp; }
};

// The 32 pixels of one row that a warp holds; all its lanes visit the same segments.
struct Segment {
  int64_t image, y, x;
};

__device__ __forceinline__ Segment segment_at(const LabelImages& all, int64_t index) {
  const int64_t row = index / all.segments();
  return {row / all.height, row % all.height, index % all.segments() * kWarp + threadIdx.x % kWarp};
}

#define SF_FOR_SEGMENTS(all, index)                                              \
  for (int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp, \
               index##_step = int64_t(gridDim.x) * blockDim.x / kWarp,           \
               index##_end = (all).images * (all).height * (all).segments();     \
       index < index##_end; index += index##_step)

__global__ void init_labels(LabelImages all) {
  SF_FOR_SEGMENTS(all, i) {
    const Segment s = segment_at(all, i);
    const int64_t p = s.y * all.width + s.x;
    const bool inside = s.x < all.width;
    const bool set = inside && all.masks[s.image * all.pixels() + p];
    const unsigned clear = ~__ballot_sync(0xffffffffu, set);
    const int lane = int(threadIdx.x % kWarp);
    const unsigned clear_before = clear & ((1u << lane) - 1u);
    const int start = clear_before ? kWarp - __clz(int(clear_before)) : 0;
    if (inside) all.labels[s.image * all.pixels() + p] = set ? int32_t(p - (lane - start)) + 1 : 0;
  }
}

// Other threads write while this one reads: each step must look again.
__device__ __forceinline__ int32_t find_root(const int32_t* labels, int32_t i) {
  const volatile int32_t* current = labels;
  for (int32_t parent; (parent = current[i] - 1) != i;) i = parent;
  return i;
}

__device__ __forceinline__ void unite(int32_t* labels, int32_t i, int32_t j) {
  while (true) {
    i = find_root(labels, i), j = find_root(labels, j);
    if (i == j) return;
    if (i < j) {
      const int32_t smaller = i;
      i = j, j = smaller;
    }
    const int32_t before = atomicMin(labels + i, j + 1) - 1;
    if (before == i) return;  // i was still a root, and is now under j
    i = before;               // it was not: what it pointed to has to meet j, too
  }
}

// Of the up to four earlier neighbours, only those that no other pixel of the same runs will be united with.
__global__ void unite_labels(LabelImages all) {
  SF_FOR_SEGMENTS(all, i) {
    const Segment s = segment_at(all, i);
    if (s.x >= all.width) continue;
    const int64_t w = all.width;
    const uint8_t* at = all.masks + s.image * all.pixels() + s.y * w + s.x;
    if (!*at) continue;
    int32_t* labels = all.labels + s.image * all.pixels();
    const int32_t p = int32_t(s.y * w + s.x);
    const bool left = s.x > 0, right = s.x + 1 < w;
    const bool west = left && at[-1];
    if (west && s.x % kWarp == 0) unite(labels, p, p - 1);
    if (s.y == 0) continue;
    const uint8_t* above = at - w;
    const bool north_west = left && above[-1];
    if (*above) {
      if (!(west && north_west)) unite(labels, p, p - int32_t(w));
    } else {
      if (north_west && !west) unite(labels, p, p - int32_t(w) - 1);
      if (right && above[1] && !at[1]) unite(labels, p, p - int32_t(w) + 1);
    }
  }
}

// Sum over the block of earlier threads' values; `total` of all. Every thread must arrive.
__device__ __forceinline__ int32_t block_scan(int32_t value, int32_t* total) {
  __shared__ int32_t warps[kThreads / kWarp];
  const int lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp);
  int32_t sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == kWarp - 1) warps[warp] = sum;
  __syncthreads();
  int32_t before = 0;
  *total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) {
    if (i < warp) before += warps[i];
    *total += warps[i];
  }
  __syncthreads();  // the next call may write
  return before + sum - value;
}

__device__ __forceinline__ bool is_root(const int32_t* labels, int64_t p) { return labels[p] == p + 1; }

// One block per tile, and per number_roots below.
__global__ void flatten_labels(LabelImages all) {
  for (int64_t tile = blockIdx.x; tile < all.images * all.tiles; tile += gridDim.x) {
    int32_t* labels = all.labels + tile / all.tiles * all.pixels();
    const int64_t begin = tile % all.tiles * kTile;
    int32_t roots = 0, total = 0;
    for (int64_t p = begin + threadIdx.x; p < begin + kTile && p < all.pixels(); p += kThreads) {
      if (labels[p] == 0) continue;
      const int32_t root = find_root(labels, int32_t(p));
      labels[p] = root + 1;
      roots += root == p;
    }
    block_scan(roots, &total);
    if (threadIdx.x == 0) all.tile_roots[tile] = total;
  }
}

// One block per image.
__global__ void scan_tiles(LabelImages all) {
  for (int64_t image = blockIdx.x; image < all.images; image += gridDim.x) {
    int32_t* roots = all.tile_roots + image * all.tiles;
    int32_t before = 0, total = 0;
    for (int64_t first = 0; first < all.tiles; first += kThreads) {
      const int64_t tile = first + threadIdx.x;
      const int32_t value = tile < all.tiles ? roots[tile] : 0;
      const int32_t earlier = block_scan(value, &total);
      if (tile < all.tiles) roots[tile] = before + earlier;
      before += total;
    }
    if (threadIdx.x == 0) all.counts[image] = before;
  }
}

// A root's label becomes minus its region's number, which no other label is.
__global__ void number_roots(LabelImages all) {
  for (int64_t tile = blockIdx.x; tile < all.images * all.tiles; tile += gridDim.x) {
    int32_t* labels = all.labels + tile / all.tiles * all.pixels();
    const int64_t begin = tile % all.tiles * kTile;
    int32_t before = all.tile_roots[tile], total = 0;
    for (int64_t first = begin; first < begin + kTile && first < all.pixels(); first += kThreads) {
      const int64_t p = first + threadIdx.x;
      const bool root = p < all.pixels() && is_root(labels, p);
      const int32_t earlier = block_scan(root ? 1 : 0, &total);
      if (root) labels[p] = -(before + earlier + 1);
      before += total;
    }
  }
}

// Whether a root has already dropped its sign does not matter to those that read it.
__global__ void finish_labels(LabelImages all) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x, end = all.images * all.pixels();
  for (int64_t p = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; p < end; p += step) {
    const int32_t label = all.labels[p];
    if (label == 0) continue;
    const volatile int32_t* image = all.labels + p / all.pixels() * all.pixels();
    const int32_t number = label < 0 ? label : image[label - 1];
    all.labels[p] = number < 0 ? -number : number;
  }
}

}  // namespace stadfast::cuda
