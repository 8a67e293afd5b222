#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "../dispatch.h"
#include "upsample_rows.h"

namespace stadfast::cpu {
namespace {

// maps: L x (B, 1, H_l, W_l) -> (B, 1, size)
Tensor upsample_combine(std::vector<Tensor> maps, std::vector<int64_t> groups, std::vector<double> weights,
                        std::vector<int64_t> grid, std::vector<int64_t> size, std::string combine) {
  check_maps(maps);
  check_size("grid", grid);
  check_size("size", size);
  const Plan plan = make_plan(combine, groups, weights, int64_t(maps.size()));
  const int64_t batch = maps[0].size(0);
  Tensor out = torch::stable::new_empty(maps[0], {batch, 1, size[0], size[1]});
  SF_DISPATCH_MAPS(maps[0].scalar_type(), A, {
    std::vector<Stretched<A>> levels;
    for (const Tensor& map : maps) {
      const Tensor rows = torch::stable::contiguous(map);
      const int64_t h = map.size(2), w = map.size(3);
      Stretched<A>& level = levels.emplace_back(batch, h, w, grid[1]);
      const A* source = static_cast<const A*>(rows.const_data_ptr());
      torch::stable::parallel_for(0, batch * h, 1 + 16384 / grid[1], [&](int64_t i, int64_t end) {
        for (; i < end; ++i) stretch_row(source + i * w, level.columns, level.rows.get() + i * grid[1]);
      });
    }
    combine_stretched(plan, levels, batch, grid, size, static_cast<A*>(out.mutable_data_ptr()));
  })
  return out;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("upsample_combine", TORCH_BOX(&stadfast::cpu::upsample_combine)); }
