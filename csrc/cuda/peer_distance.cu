#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../dispatch.h"
#include "../peers.h"
#include "launch.cuh"
#include "peer_launches.cuh"

namespace stadfast::cuda {
namespace {

PeerShape shape_of(const Peers& peers) {
  const Layout& x = peers.layout();
  return {x.batch, x.channels, x.pixels(), peers.channels_last()};
}

std::vector<View> views_of(const Peers& peers) {
  std::vector<View> views;
  for (size_t i = 0; i < peers.tensors.size(); ++i)
    views.push_back({peers.tensors[i].const_data_ptr(), peers.layouts[i].batch_stride, peers.inner_stride(i)});
  return views;
}

// descriptors: N x (B, C, H, W); pairs: 2 P numbers; groups: P numbers -> (B, G, H, W)
Tensor peer_distance(std::vector<Tensor> descriptors, std::vector<int64_t> pairs, std::vector<int64_t> groups,
                     bool squared) {
  SF_CHECK(!descriptors.empty(), "descriptors: expected at least one");
  const DeviceGuard guard(descriptors[0].get_device_index());
  const Peers peers = readable_peers(descriptors);
  const std::vector<PeerPair> merged = merge_pairs(pairs, groups, descriptors.size());
  const Layout& x = peers.layout();
  Tensor out = torch::stable::new_zeros(peers.tensors[0], {x.batch, merged.back().group + 1, x.height, x.width},
                                        map_dtype(peers.tensors[0]));
  if (x.batch == 0) return out;
  const cudaStream_t stream = current_stream(peers.tensors[0]);
  SF_DISPATCH(descriptors[0].scalar_type(), T, A, {
    static_assert(sizeof(PeerDistances<T, A>) <= kMaxParameterBytes);
    A* result = static_cast<A*>(out.mutable_data_ptr());
    for (const auto& all : peer_launches<T, A>(shape_of(peers), views_of(peers), merged, squared, result)) {
      peer_kernel<T, A><<<grid_size(all.tiles), kThreads, 0, stream>>>(all);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  })
  return out;
}

// factors: (B, P, H, W) -> for each wanted descriptor i, sum over its pairs p of factors[p] * (x_i - x_other)
std::vector<Tensor> peer_distance_backward(Tensor factors, std::vector<Tensor> descriptors, std::vector<int64_t> pairs,
                                           std::vector<int64_t> wanted) {
  SF_CHECK(!descriptors.empty(), "descriptors: expected at least one");
  const DeviceGuard guard(descriptors[0].get_device_index());
  const Peers peers = readable_peers(descriptors);
  const std::vector<std::vector<PeerEdge>> edges = edges_of(wanted, pairs, descriptors.size());
  check_factors(factors, peers, pairs.size() / 2);
  const Tensor f = torch::stable::contiguous(factors);
  const cudaStream_t stream = current_stream(peers.tensors[0]);
  std::vector<Tensor> gradients;
  for (size_t w = 0; w < wanted.size(); ++w) {
    gradients.push_back(empty_like_peer(peers));
    if (peers.layout().batch == 0) continue;
    Layout g;
    find_layout(gradients[w], &g);
    const View gradient{gradients[w].mutable_data_ptr(), g.batch_stride,
                        peers.channels_last() ? g.pixel_stride : g.channel_stride};
    SF_DISPATCH(descriptors[0].scalar_type(), T, A, {
      static_assert(sizeof(PeerGradient<T, A>) <= kMaxParameterBytes);
      const A* data = static_cast<const A*>(f.const_data_ptr());
      const unsigned blocks = grid_size(divide_up(peers.tensors[0].numel(), kThreads));
      for (const auto& all : peer_gradient_launches<T, A>(shape_of(peers), views_of(peers), wanted[w], edges[w], data,
                                                          int64_t(pairs.size()) / 2, gradient)) {
        peer_gradient_kernel<T, A><<<blocks, kThreads, 0, stream>>>(all);
        STD_CUDA_KERNEL_LAUNCH_CHECK();
      }
    })
  }
  return gradients;
}

}  // namespace
}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) {
  m.impl("peer_distance", TORCH_BOX(&stadfast::cuda::peer_distance));
  m.impl("peer_distance_backward", TORCH_BOX(&stadfast::cuda::peer_distance_backward));
}
