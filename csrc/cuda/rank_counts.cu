#include <torch/csrc/stable/library.h>

#include <vector>

#include "../dispatch.h"
#include "scores.cuh"

namespace stadfast::cuda {
namespace {

// scores: any number of tensors of any shape; edges: (n,) rising, distinct -> (2n + 2,) int64, see rank_table.h
template <class T, class A>
void count(const std::vector<Tensor>& scores, const Tensor& edges, const Tensor& counts) {
  using K = Key<A>;
  const int64_t n = edges.numel(), cells = 2 * n + 66;
  const cudaStream_t stream = current_stream(edges);
  Tensor keys = torch::stable::new_empty(edges, {(n + 2) * int64_t(sizeof(K))}, ScalarType::Byte);
  Tensor first = torch::stable::new_empty(edges, {cells}, ScalarType::Int);
  K* key = static_cast<K*>(keys.mutable_data_ptr());
  int32_t* cell = static_cast<int32_t*>(first.mutable_data_ptr());
  key_edges<A><<<grid_size(divide_up(n + 2, kThreads)), kThreads, 0, stream>>>(
      static_cast<const A*>(edges.const_data_ptr()), n, key);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (n > 0) {
    fill_cells<K><<<grid_size(divide_up(cells, kThreads)), kThreads, 0, stream>>>(key, n, cell, cells);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  Count* slots = static_cast<Count*>(const_cast<void*>(counts.const_data_ptr()));
  for_scores(scores, [&](const Scores& some, dim3 grid) {
    count_ranks<T, A><<<grid, kThreads, 0, stream>>>(some, key, n, cell, slots);
  });
}

Tensor rank_counts(std::vector<Tensor> scores, Tensor edges) {
  SF_CHECK(edges.dim() == 1 && edges.numel() < INT32_MAX / 2 - 64, "edges: expected one dimension");
  SF_CHECK(edges.is_cuda() && (scores.empty() || scores[0].get_device_index() == edges.get_device_index()),
           "edges: expected on the scores' device");
  const DeviceGuard guard(edges.get_device_index());
  const Tensor rising = torch::stable::contiguous(edges);
  Tensor counts = torch::stable::new_zeros(edges, {2 * edges.numel() + 2}, ScalarType::Long);
  if (scores.empty()) return counts;
  check_scores(scores);
  SF_DISPATCH(scores[0].scalar_type(), T, A, {
    SF_CHECK(edges.scalar_type() == (sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float),
             "edges: expected float32, or float64 for float64 scores");
    count<T, A>(scores, rising, counts);
  })
  return counts;
}

}  // namespace
}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) { m.impl("rank_counts", TORCH_BOX(&stadfast::cuda::rank_counts)); }
