// Counting scores into slots with integer atomics, so that any order gives the same result.
#pragma once

#include "../rank_table.h"
#include "kernel.cuh"

namespace stadfast::cuda {

using Count = unsigned long long;

constexpr int kTensors = 128;  // of one launch: their addresses travel by value

struct Scores {
  const void* data[kTensors];
  int64_t size[kTensors];
};

// One atomic per distinct slot of a warp: neighbouring pixels often share one. All lanes must arrive.
__device__ __forceinline__ void count_slot(Count* counts, int64_t slot, bool counted) {
  const unsigned lanes = __ballot_sync(0xffffffffu, counted);
  if (!counted) return;
  const unsigned same = __match_any_sync(lanes, static_cast<unsigned long long>(slot));
  if (__ffs(int(same)) - 1 == int(threadIdx.x % kWarp)) atomicAdd(counts + slot, Count(__popc(same)));
}

// f(score) -> slot, of the tensor blockIdx.y.
template <class T, class F>
__device__ __forceinline__ void count_tensor(const Scores& scores, Count* counts, const F& f) {
  const T* data = static_cast<const T*>(scores.data[blockIdx.y]);
  const int64_t size = scores.size[blockIdx.y], step = int64_t(gridDim.x) * blockDim.x;
  const int64_t rounded = (size + kWarp - 1) / kWarp * kWarp;  // whole warps, for the votes
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rounded; i += step)
    count_slot(counts, i < size ? f(data[i]) : 0, i < size);
}

constexpr int kCopies = 8;  // of the histogram, so that blocks seldom meet at one bin

template <class T>
__global__ void count_bins(Scores scores, Count* copies) {
  Count* counts = copies + (blockIdx.x + blockIdx.y) % kCopies * kBins;
  count_tensor<T>(scores, counts, [](T score) { return int64_t(bin_key(score)); });
}

// A template, since two files include it.
template <class C>
__global__ void sum_copies(const C* copies, int64_t* counts) {
  const int64_t bin = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (bin >= kBins) return;
  C sum = 0;
  for (int copy = 0; copy < kCopies; ++copy) sum += copies[copy * kBins + bin];
  counts[bin] += int64_t(sum);
}

// edges: n values -> keys, padded by two that no score reaches: inner_rank_slot takes two steps unseen.
template <class A>
__global__ void key_edges(const A* edges, int64_t n, Key<A>* keys) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n + 2) keys[i] = i < n ? order_key(edges[i]) : ~Key<A>(0);
}

// The table's scalars follow from the edges, which the host does not see; `first` has room for 2n + 66 cells.
template <class K>
__device__ __forceinline__ RankTable<K> device_table(const K* keys, const int32_t* first, int64_t n) {
  if (n == 0) return {keys, first, 0, 0, 0, 0};
  return {keys, first, n, keys[0], keys[n - 1], cell_shift(keys[0], keys[n - 1], n)};
}

template <class K>
__global__ void fill_cells(const K* keys, int64_t n, int32_t* first, int64_t cells) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= cells) return;
  const RankTable<K> table = device_table(keys, first, n);
  const bool beyond = i > table.cell(table.high);
  first[i] = int32_t(beyond ? n : lower_bound<K>(keys, 0, n, K(table.low + (K(i) << table.shift))));
}

template <class T, class A>
__global__ void count_ranks(Scores scores, const Key<A>* keys, int64_t n, const int32_t* first, Count* counts) {
  const RankTable<Key<A>> table = device_table(keys, first, n);
  count_tensor<T>(scores, counts, [&](T score) {
    const int64_t slot = rank_slot(table, order_key(A(score)));
    return slot < 2 * n + 2 ? slot : 2 * n + 1;  // beyond only if the edges did not rise
  });
}

}  // namespace stadfast::cuda
