#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../dispatch.h"
#include "peer_rows.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // elements below which a second thread costs more than it brings

// f(image, first pixel, pixels) for blocks of pixels, in parallel, each thread with a scratch of its own.
template <class A, class F>
void for_blocks(const Peers& peers, const F& f) {
  const Layout& x = peers.layout();
  const int64_t per_pixel = x.channels * int64_t(peers.tensors.size());
  const int64_t blocks = (x.pixels() + kPeerBlock - 1) / kPeerBlock;
  const int64_t grain = std::max<int64_t>(1, kGrain / (per_pixel * std::min(kPeerBlock, x.pixels())));
  torch::stable::parallel_for(0, x.batch * blocks, grain, [&](int64_t i, int64_t end) {
    PeerScratch<A> scratch;
    for (; i < end; ++i) {
      const int64_t p = i % blocks * kPeerBlock;
      f(i / blocks, p, std::min(kPeerBlock, x.pixels() - p), scratch);
    }
  });
}

// The descriptors from pixel p of image b on.
template <class T>
void view_block(const Peers& peers, int64_t b, int64_t p, std::vector<PeerView<T>>* views) {
  views->clear();
  for (size_t i = 0; i < peers.tensors.size(); ++i) {
    const Layout& x = peers.layouts[i];
    const T* data = static_cast<const T*>(peers.tensors[i].const_data_ptr());
    views->push_back({data + b * x.batch_stride + p * x.pixel_stride, peers.inner_stride(i)});
  }
}

// descriptors: N x (B, C, H, W); pairs: 2 P numbers; groups: P numbers -> (B, G, H, W)
Tensor peer_distance(std::vector<Tensor> descriptors, std::vector<int64_t> pairs, std::vector<int64_t> groups,
                     bool squared) {
  const Peers peers = readable_peers(descriptors);
  const std::vector<PeerPair> merged = merge_pairs(pairs, groups, descriptors.size());
  const Layout& x = peers.layout();
  const int64_t maps = merged.back().group + 1, pixels = x.pixels();
  Tensor out =
      torch::stable::new_empty(peers.tensors[0], {x.batch, maps, x.height, x.width}, map_dtype(peers.tensors[0]));
  SF_DISPATCH(descriptors[0].scalar_type(), T, A, {
    A* result = static_cast<A*>(out.mutable_data_ptr());
    for_blocks<A>(peers, [&](int64_t b, int64_t p, int64_t n, PeerScratch<A>& scratch) {
      std::vector<PeerView<T>> views;
      view_block(peers, b, p, &views);
      peer_sums<T, A>({peers.channels_last(), x.channels, n}, views, merged, scratch);
      peer_groups<A>(scratch, merged, squared, n, pixels, result + b * maps * pixels + p);
    });
  })
  return out;
}

// factors: (B, P, H, W) -> for each wanted descriptor i, sum over its pairs p of factors[p] * (x_i - x_other)
std::vector<Tensor> peer_distance_backward(Tensor factors, std::vector<Tensor> descriptors, std::vector<int64_t> pairs,
                                           std::vector<int64_t> wanted) {
  const Peers peers = readable_peers(descriptors);
  const std::vector<std::vector<PeerEdge>> edges = edges_of(wanted, pairs, descriptors.size());
  check_factors(factors, peers, pairs.size() / 2);
  const Layout& x = peers.layout();
  const Tensor f = torch::stable::contiguous(factors);
  const int64_t pixels = x.pixels(), pair_count = int64_t(pairs.size()) / 2;
  std::vector<Tensor> gradients;
  for (size_t w = 0; w < wanted.size(); ++w) gradients.push_back(empty_like_peer(peers));
  SF_DISPATCH(descriptors[0].scalar_type(), T, A, {
    const A* data = static_cast<const A*>(f.const_data_ptr());
    for_blocks<A>(peers, [&](int64_t b, int64_t p, int64_t n, PeerScratch<A>& scratch) {
      std::vector<PeerView<T>> views;
      view_block(peers, b, p, &views);
      for (size_t w = 0; w < wanted.size(); ++w) {
        Layout g;
        find_layout(gradients[w], &g);
        T* gradient = static_cast<T*>(gradients[w].mutable_data_ptr()) + b * g.batch_stride + p * g.pixel_stride;
        peer_gradient<T, A>({peers.channels_last(), x.channels, n}, views, wanted[w], edges[w],
                            data + b * pair_count * pixels + p, pixels, scratch, gradient,
                            peers.channels_last() ? g.pixel_stride : g.channel_stride);
      }
    });
  })
  return gradients;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) {
  m.impl("peer_distance", TORCH_BOX(&stadfast::cpu::peer_distance));
  m.impl("peer_distance_backward", TORCH_BOX(&stadfast::cpu::peer_distance_backward));
}
