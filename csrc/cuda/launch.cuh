// From tensors to launches, for the ops of this folder.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../combine.h"
#include "../layout.h"

namespace stadfast::cuda {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& on) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Kernels loop over what lies beyond the largest grid.
inline unsigned grid_size(int64_t blocks) { return unsigned(std::min<int64_t>(blocks, INT32_MAX)); }

// Kernel parameters travel by value; every architecture and toolkit takes this much.
constexpr size_t kMaxParameterBytes = 4096;

inline std::vector<Pair> readable_pairs(const std::vector<Tensor>& student, const std::vector<Tensor>& teacher) {
  SF_CHECK(student.size() <= size_t(kMaxLevels), "expected at most ", kMaxLevels, " levels, got ", student.size());
  std::vector<Pair> pairs;
  for (size_t level = 0; level < student.size(); ++level)
    pairs.push_back(readable_pair(student[level], teacher[level]));
  return pairs;
}

// In pyramid_distance.cu. maps: per level the address of B x H_l x W_l distances, of map_dtype(student).
void launch_distance(const std::vector<Pair>& pairs, const std::vector<void*>& maps, double eps);

// In upsample_combine.cu. One level map: B x height x width at `data`, of the dtype of `out`.
struct LevelMap {
  const void* data;
  int64_t height, width;
};

// out: (B, 1, size), contiguous
void launch_combination(const Plan& plan, const std::vector<LevelMap>& maps, const std::vector<int64_t>& grid,
                        const Tensor& out);

}  // namespace stadfast::cuda
