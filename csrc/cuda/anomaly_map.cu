#include <torch/csrc/stable/library.h>

#include "launch.cuh"

namespace stadfast::cuda {
namespace {

// student, teacher: L x (B, C_l, H_l, W_l) -> (B, 1, size), in two launches
Tensor anomaly_map(std::vector<Tensor> student, std::vector<Tensor> teacher, std::vector<int64_t> groups,
                   std::vector<double> weights, std::vector<int64_t> grid, std::vector<int64_t> size,
                   std::string combine, double eps) {
  check_pyramids(student, teacher);
  check_size("grid", grid);
  check_size("size", size);
  const Plan plan = make_plan(combine, groups, weights, int64_t(student.size()));
  const DeviceGuard guard(student[0].get_device_index());
  const std::vector<Pair> pairs = readable_pairs(student, teacher);
  const int64_t batch = student[0].size(0);
  int64_t total = 0;
  for (const Pair& pair : pairs) total += batch * pair.s.pixels();
  const Tensor distances = torch::stable::new_empty(student[0], {total}, map_dtype(student[0]));  // of all levels
  const int64_t element = map_dtype(student[0]) == ScalarType::Double ? 8 : 4;
  char* next = static_cast<char*>(distances.mutable_data_ptr());
  std::vector<void*> maps;
  std::vector<LevelMap> levels;
  for (const Pair& pair : pairs) {
    maps.push_back(next);
    levels.push_back({next, pair.s.height, pair.s.width});
    next += batch * pair.s.pixels() * element;
  }
  Tensor out = empty_map(student[0], batch, size[0], size[1]);
  launch_distance(pairs, maps, eps);
  launch_combination(plan, levels, grid, out);
  return out;
}

}  // namespace
}  // namespace stadfast::cuda

STABLE_TORCH_LIBRARY_IMPL(stadfast, CUDA, m) { m.impl("anomaly_map", TORCH_BOX(&stadfast::cuda::anomaly_map)); }
