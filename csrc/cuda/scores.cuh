// Lists of score tensors, in launches of as many as fit a kernel's parameters.
#pragma once

#include <vector>

#include "../check_scores.h"
#include "counting_kernel.cuh"
#include "launch.cuh"

namespace stadfast::cuda {

constexpr int64_t kBlocksPerTensor = 1024;

// launch(scores, grid) for every stretch of `tensors` that is not empty.
template <class Launch>
void for_scores(const std::vector<Tensor>& tensors, const Launch& launch) {
  std::vector<Tensor> dense;
  for (const Tensor& tensor : tensors)
    if (tensor.numel() > 0) dense.push_back(torch::stable::contiguous(tensor));
  for (size_t begin = 0; begin < dense.size(); begin += kTensors) {
    const size_t count = std::min(dense.size() - begin, size_t(kTensors));
    Scores scores{};
    int64_t largest = 0;
    for (size_t i = 0; i < count; ++i) {
      scores.data[i] = dense[begin + i].const_data_ptr();
      scores.size[i] = dense[begin + i].numel();
      largest = std::max(largest, scores.size[i]);
    }
    launch(scores, dim3(unsigned(std::min(divide_up(largest, kThreads), kBlocksPerTensor)), unsigned(count)));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace stadfast::cuda
