#include "peer_rows.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../macros.h"
#include "narrow.h"

namespace stadfast::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Planar channels are taken in bunches, so that the sums are not loaded and stored for every channel.
constexpr int64_t kBunch = 4;

// `n` elements of a descriptor as the type of sums: in place, or widened into `buffer`.
template <class T, class A>
SF_INLINE const A* widened(const T* from, int64_t n, A* buffer) {
  if constexpr (std::is_same_v<T, A>) {
    return from;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) buffer[i] = A(from[i]);
    return buffer;
  }
}

// ----------------------------------------------------------------------------------------------
// channels_last: rows are the channels of one pixel, `wide` holds kPeerChannels of each descriptor

template <class T, class A>
SF_INLINE void widen_pixel(const PeerView<T>* x, int64_t count, int64_t p, int64_t c, int64_t n, A* wide,
                           const A** rows) {
  for (int64_t i = 0; i < count; ++i) rows[i] = widened(x[i].data + p * x[i].stride + c, n, wide + i * kPeerChannels);
}

template <class T, class A>
SF_INLINE void sums_channels_last(const PeerBlock& block, const PeerView<T>* x, int64_t count, const PeerPair* pairs,
                                  int64_t pair_count, A* wide, const A** rows, A* sums) {
  for (int64_t p = 0; p < block.pixels; ++p) {
    for (int64_t c = 0; c < block.channels; c += kPeerChannels) {
      const int64_t n = std::min(kPeerChannels, block.channels - c);
      widen_pixel(x, count, p, c, n, wide, rows);
      for (int64_t k = 0; k < pair_count; ++k) {
        const A *a = rows[pairs[k].first], *b = rows[pairs[k].second];
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
        sums[k * kPeerBlock + p] = c == 0 ? sum : sums[k * kPeerBlock + p] + sum;
      }
    }
  }
}

template <class T, class A>
SF_INLINE void gradient_channels_last(const PeerBlock& block, const PeerView<T>* x, int64_t count, int64_t self,
                                      const PeerEdge* edges, int64_t edge_count, const A* factors,
                                      int64_t factor_stride, A* wide, const A** rows, A* sum, T* gradient,
                                      int64_t stride) {
  for (int64_t p = 0; p < block.pixels; ++p) {
    for (int64_t c = 0; c < block.channels; c += kPeerChannels) {
      const int64_t n = std::min(kPeerChannels, block.channels - c);
      widen_pixel(x, count, p, c, n, wide, rows);
      std::fill(sum, sum + n, A(0));
      for (int64_t e = 0; e < edge_count; ++e) {
        const A *a = rows[self], *b = rows[edges[e].other];
        const A factor = factors[edges[e].factor * factor_stride + p];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) sum[i] += factor * (a[i] - b[i]);
      }
      T* g = gradient + p * stride + c;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) g[i] = narrow<T>(sum[i]);
    }
  }
}

// ----------------------------------------------------------------------------------------------
// planar: rows are the pixels of one channel, `wide` holds kBunch of them of each descriptor

template <int kCount, class T, class A>
SF_INLINE void add_channels(const PeerBlock& block, const PeerView<T>* x, int64_t count, int64_t c,
                            const PeerPair* pairs, int64_t pair_count, A* wide, const A** rows, A* sums) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = 0; k < kCount; ++k)
      rows[i * kBunch + k] =
          widened(x[i].data + (c + k) * x[i].stride, block.pixels, wide + (i * kBunch + k) * kPeerBlock);
  for (int64_t k = 0; k < pair_count; ++k) {
    const A *const *a = rows + pairs[k].first * kBunch, *const *b = rows + pairs[k].second * kBunch;
    A* sum = sums + k * kPeerBlock;
    const A *a0 = a[0], *b0 = b[0];
    if constexpr (kCount == 4) {
      const A *a1 = a[1], *a2 = a[2], *a3 = a[3], *b1 = b[1], *b2 = b[2], *b3 = b[3];
#pragma omp simd
      for (int64_t p = 0; p < block.pixels; ++p)
        sum[p] += (a0[p] - b0[p]) * (a0[p] - b0[p]) + (a1[p] - b1[p]) * (a1[p] - b1[p]) +
                  ((a2[p] - b2[p]) * (a2[p] - b2[p]) + (a3[p] - b3[p]) * (a3[p] - b3[p]));
    } else {
#pragma omp simd
      for (int64_t p = 0; p < block.pixels; ++p) sum[p] += (a0[p] - b0[p]) * (a0[p] - b0[p]);
    }
  }
}

template <class T, class A>
SF_INLINE void sums_planar(const PeerBlock& block, const PeerView<T>* x, int64_t count, const PeerPair* pairs,
                           int64_t pair_count, A* wide, const A** rows, A* sums) {
  std::fill(sums, sums + pair_count * kPeerBlock, A(0));
  int64_t c = 0;
  for (; c + kBunch <= block.channels; c += kBunch)
    add_channels<kBunch>(block, x, count, c, pairs, pair_count, wide, rows, sums);
  for (; c < block.channels; ++c) add_channels<1>(block, x, count, c, pairs, pair_count, wide, rows, sums);
}

template <class T, class A>
SF_INLINE void gradient_planar(const PeerBlock& block, const PeerView<T>* x, int64_t count, int64_t self,
                               const PeerEdge* edges, int64_t edge_count, const A* factors, int64_t factor_stride,
                               A* wide, const A** rows, A* sum, T* gradient, int64_t stride) {
  for (int64_t c = 0; c < block.channels; ++c) {
    for (int64_t i = 0; i < count; ++i)
      rows[i] = widened(x[i].data + c * x[i].stride, block.pixels, wide + i * kPeerBlock);
    std::fill(sum, sum + block.pixels, A(0));
    for (int64_t e = 0; e < edge_count; ++e) {
      const A *a = rows[self], *b = rows[edges[e].other], *factor = factors + edges[e].factor * factor_stride;
#pragma omp simd
      for (int64_t p = 0; p < block.pixels; ++p) sum[p] += factor[p] * (a[p] - b[p]);
    }
    T* g = gradient + c * stride;
#pragma omp simd
    for (int64_t p = 0; p < block.pixels; ++p) g[p] = narrow<T>(sum[p]);
  }
}

// target_clones takes no templates: one named clone per element type.
#define SF_LEAVES(T, A)                                                                                            \
  SF_CLONES void sums_of(const PeerBlock& block, const PeerView<T>* x, int64_t count, const PeerPair* pairs,       \
                         int64_t pair_count, A* wide, const A** rows, A* sums) {                                   \
    if (block.channels_last)                                                                                       \
      sums_channels_last(block, x, count, pairs, pair_count, wide, rows, sums);                                    \
    else                                                                                                           \
      sums_planar(block, x, count, pairs, pair_count, wide, rows, sums);                                           \
  }                                                                                                                \
  SF_CLONES void gradient_of(const PeerBlock& block, const PeerView<T>* x, int64_t count, int64_t self,            \
                             const PeerEdge* edges, int64_t edge_count, const A* factors, int64_t factor_stride,   \
                             A* wide, const A** rows, A* sum, T* gradient, int64_t stride) {                       \
    if (block.channels_last)                                                                                       \
      gradient_channels_last(block, x, count, self, edges, edge_count, factors, factor_stride, wide, rows, sum,    \
                             gradient, stride);                                                                    \
    else                                                                                                           \
      gradient_planar(block, x, count, self, edges, edge_count, factors, factor_stride, wide, rows, sum, gradient, \
                      stride);                                                                                     \
  }

SF_LEAVES(float, float)
SF_LEAVES(double, double)
SF_LEAVES(Half, float)
SF_LEAVES(BFloat16, float)

#define SF_GROUPS(A)                                                                                  \
  SF_CLONES void add_to_group(bool squared, A weight, const A* sums, int64_t pixels, A* map) {        \
    if (squared) {                                                                                    \
      _Pragma("omp simd") for (int64_t p = 0; p < pixels; ++p) map[p] += weight * sums[p];            \
    } else {                                                                                          \
      _Pragma("omp simd") for (int64_t p = 0; p < pixels; ++p) map[p] += weight * std::sqrt(sums[p]); \
    }                                                                                                 \
  }

SF_GROUPS(float)
SF_GROUPS(double)

// Room for the widened rows of `count` descriptors.
template <class T, class A>
void reserve(const PeerBlock& block, size_t count, PeerScratch<A>& scratch) {
  if constexpr (!std::is_same_v<T, A>)
    scratch.wide.resize(count * (block.channels_last ? kPeerChannels : kBunch * kPeerBlock));
}

}  // namespace

template <class T, class A>
void peer_sums(const PeerBlock& block, const std::vector<PeerView<T>>& descriptors, const std::vector<PeerPair>& pairs,
               PeerScratch<A>& scratch) {
  reserve<T>(block, descriptors.size(), scratch);
  scratch.rows.resize(descriptors.size() * kBunch);
  scratch.sums.resize(pairs.size() * kPeerBlock);
  sums_of(block, descriptors.data(), int64_t(descriptors.size()), pairs.data(), int64_t(pairs.size()),
          scratch.wide.data(), scratch.rows.data(), scratch.sums.data());
}

template <class A>
void peer_groups(const PeerScratch<A>& scratch, const std::vector<PeerPair>& pairs, bool squared, int64_t pixels,
                 int64_t stride, A* maps) {
  for (int32_t g = 0; g <= pairs.back().group; ++g) std::fill(maps + g * stride, maps + g * stride + pixels, A(0));
  for (size_t k = 0; k < pairs.size(); ++k)
    add_to_group(squared, A(pairs[k].weight), scratch.sums.data() + k * kPeerBlock, pixels,
                 maps + pairs[k].group * stride);
}

template <class T, class A>
void peer_gradient(const PeerBlock& block, const std::vector<PeerView<T>>& descriptors, int64_t self,
                   const std::vector<PeerEdge>& edges, const A* factors, int64_t factor_stride, PeerScratch<A>& scratch,
                   T* gradient, int64_t gradient_stride) {
  reserve<T>(block, descriptors.size(), scratch);
  scratch.rows.resize(descriptors.size());
  scratch.sums.resize(std::max(kPeerBlock, kPeerChannels));
  gradient_of(block, descriptors.data(), int64_t(descriptors.size()), self, edges.data(), int64_t(edges.size()),
              factors, factor_stride, scratch.wide.data(), scratch.rows.data(), scratch.sums.data(), gradient,
              gradient_stride);
}

#define SF_INSTANTIATE(T, A)                                                                                     \
  template void peer_sums<T, A>(const PeerBlock&, const std::vector<PeerView<T>>&, const std::vector<PeerPair>&, \
                                PeerScratch<A>&);                                                                \
  template void peer_gradient<T, A>(const PeerBlock&, const std::vector<PeerView<T>>&, int64_t,                  \
                                    const std::vector<PeerEdge>&, const A*, int64_t, PeerScratch<A>&, T*, int64_t);

SF_INSTANTIATE(float, float)
SF_INSTANTIATE(double, double)
SF_INSTANTIATE(Half, float)
SF_INSTANTIATE(BFloat16, float)

template void peer_groups<float>(const PeerScratch<float>&, const std::vector<PeerPair>&, bool, int64_t, int64_t,
                                 float*);
template void peer_groups<double>(const PeerScratch<double>&, const std::vector<PeerPair>&, bool, int64_t, int64_t,
                                  double*);

}  // namespace stadfast::cpu
