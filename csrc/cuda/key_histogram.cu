#include <torch/csrc/stable/library.h>

#include <vector>

#include "scores.cuh"

namespace stadfast::cuda {
namespace {

template <class T>
void count(const std::vector<Tensor>& scores, Count* copies, cudaStream_t stream) {
  for_scores(scores,
             [&](const Scores& some, dim3 grid) { count_bins<T><<<grid, kThreads, 0, stream>>>(some, copies); });
}

// scores: any number of tensors of any shape, float32, float16 or bfloat16 -> (65536,) int64
Tensor key_histogram(std::vector<Tensor> scores) {
  SF_CHECK(!scores.empty(), "scores: expected at least one tensor");
  check_scores(scores);
  const DeviceGuard guard(scores[0].get_device_index());
  Tensor counts = torch::stable::new_zeros(scores[0], {kBins}, ScalarType::Long);
  Tensor workspace = torch::stable::new_zeros(scores[0], {kCopies, kBins}, ScalarType::Long);
  Count* copies = static_cast<Count*>(workspace.mutable_data_ptr());
  const cudaStream_t stream = current_stream(scores[0]);
  switch (scores[0].scalar_type()) {
    case ScalarType::Float:
      count<float>(scores, copies, stream);
      break;
    case ScalarType::Half:
      count<torch::headeronly::Half>(scores, copies, stream);
      break;
    case ScalarType::BFloat16:
      count<torch::headeronly::BFloat16>(scores, copies, stream);
      break;
    default:
      SF_CHECK(false, "scores: expected float32, float16 or bfloat16");
  }
  sum_copies<<<kBins / kThreads, kThreads, 0, stream>>>(copies, static_cast<int64_t*>(counts.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return counts;
}

}  // namespace
}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) { m.impl("key_histogram", TORCH_BOX(&stadfast::cuda::key_histogram)); }
