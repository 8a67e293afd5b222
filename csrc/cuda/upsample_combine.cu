#include <torch/csrc/stable/library.h>

#include "../dispatch.h"
#include "combine_kernel.cuh"
#include "launch.cuh"

namespace stadfast::cuda {
namespace {

template <class A>
void launch(const Plan& plan, const std::vector<LevelMap>& maps, const std::vector<int64_t>& grid, const Tensor& out) {
  static_assert(sizeof(Combination<A>) <= kMaxParameterBytes - 64);
  Combination<A> c{};
  c.images = out.size(0);
  c.grid_height = int32_t(grid[0]), c.grid_width = int32_t(grid[1]);
  c.height = int32_t(out.size(2)), c.width = int32_t(out.size(3));
  c.levels = plan.levels;
  const bool product = plan.mode == Mode::kProduct;
  for (int32_t i = 0; i < plan.levels; ++i) {
    const LevelMap& map = maps[plan.order[i]];
    c.level[i] = {static_cast<const A*>(map.data),
                  int32_t(map.height),
                  int32_t(map.width),
                  A(plan.weight[i]),
                  product ? plan.opens(i) : i == 0,
                  product ? plan.closes(i) : i + 1 == plan.levels};
  }
  const int64_t threads = c.images * c.height * divide_up(c.width, kVector<A>);
  if (threads == 0) return;
  combine_kernel<A><<<grid_size(divide_up(threads, kCombineThreads)), kCombineThreads, 0, current_stream(out)>>>(
      c, static_cast<A*>(out.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// maps: L x (B, 1, H_l, W_l) -> (B, 1, size)
Tensor upsample_combine(std::vector<Tensor> maps, std::vector<int64_t> groups, std::vector<double> weights,
                        std::vector<int64_t> grid, std::vector<int64_t> size, std::string combine) {
  check_maps(maps);
  check_size("grid", grid);
  check_size("size", size);
  const Plan plan = make_plan(combine, groups, weights, int64_t(maps.size()));
  const DeviceGuard guard(maps[0].get_device_index());
  std::vector<Tensor> rows;  // keeps the copies alive until the launch
  std::vector<LevelMap> levels;
  for (const Tensor& map : maps) {
    rows.push_back(torch::stable::contiguous(map));
    levels.push_back({rows.back().const_data_ptr(), map.size(2), map.size(3)});
  }
  Tensor out = torch::stable::new_empty(maps[0], {maps[0].size(0), 1, size[0], size[1]});
  launch_combination(plan, levels, grid, out);
  return out;
}

}  // namespace

void launch_combination(const Plan& plan, const std::vector<LevelMap>& maps, const std::vector<int64_t>& grid,
                        const Tensor& out) {
  SF_DISPATCH_MAPS(out.scalar_type(), A, { launch<A>(plan, maps, grid, out); })
}

}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) {
  m.impl("upsample_combine", TORCH_BOX(&stadfast::cuda::upsample_combine));
}
