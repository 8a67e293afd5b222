#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../check_scores.h"
#include "label_kernel.cuh"
#include "launch.cuh"

namespace stadfast::cuda {
namespace {

// masks: (B, H, W) bool -> labels (B, H, W) int32, counts (B,) int64
std::tuple<Tensor, Tensor> label_regions(Tensor masks) {
  check_masks(masks);
  const DeviceGuard guard(masks.get_device_index());
  const Tensor dense = torch::stable::contiguous(masks);
  const int64_t batch = masks.size(0), height = masks.size(1), width = masks.size(2);
  const int64_t tiles = divide_up(height * width, kTile);
  Tensor labels = torch::stable::new_empty(masks, {batch, height, width}, ScalarType::Int);
  Tensor counts = torch::stable::new_zeros(masks, {batch}, ScalarType::Long);
  if (labels.numel() == 0) return {labels, counts};
  Tensor tile_roots = torch::stable::new_empty(masks, {batch, tiles}, ScalarType::Int);
  const LabelImages all{static_cast<const uint8_t*>(dense.const_data_ptr()),
                        static_cast<int32_t*>(labels.mutable_data_ptr()),
                        static_cast<int32_t*>(tile_roots.mutable_data_ptr()),
                        static_cast<int64_t*>(counts.mutable_data_ptr()),
                        batch,
                        height,
                        width,
                        tiles};
  const cudaStream_t stream = current_stream(masks);
  const unsigned by_segment = grid_size(divide_up(batch * height * divide_up(width, kWarp) * kWarp, kThreads));
  const unsigned by_pixel = grid_size(divide_up(batch * height * width, kThreads));
  const unsigned by_tile = grid_size(batch * tiles);
  init_labels<<<by_segment, kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  unite_labels<<<by_segment, kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  flatten_labels<<<by_tile, kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  scan_tiles<<<grid_size(batch), kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  number_roots<<<by_tile, kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  finish_labels<<<by_pixel, kThreads, 0, stream>>>(all);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {labels, counts};
}

}  // namespace
}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) { m.impl("label_regions", TORCH_BOX(&stadfast::cuda::label_regions)); }
