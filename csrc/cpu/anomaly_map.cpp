#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../dispatch.h"
#include "distance_rows.h"
#include "upsample_rows.h"

namespace stadfast::cpu {
namespace {

constexpr int64_t kTaskElements = 16384;  // feature elements of a task: pays for its overhead, stays in L2
constexpr int64_t kTasksPerThread = 8;    // less (some 50 us) is not worth waking another thread, nor waiting for it

// Consecutive rows of one image of one level.
struct Task {
  int32_t level;
  int64_t image, first_row, rows;
};

std::vector<Task> make_tasks(const std::vector<Pair>& pairs) {
  std::vector<Task> tasks;
  for (size_t level = 0; level < pairs.size(); ++level) {
    const Layout& s = pairs[level].s;
    const int64_t rows = std::clamp<int64_t>(kTaskElements / (s.channels * s.width), 1, s.height);
    for (int64_t image = 0; image < s.batch; ++image)
      for (int64_t row = 0; row < s.height; row += rows)
        tasks.push_back({int32_t(level), image, row, std::min(rows, s.height - row)});
  }
  return tasks;
}

template <class T, class A>
void run_task(const Task& task, const Pair& pair, A eps, std::vector<A>& buffer, Stretched<A>& level) {
  const Layout& s = pair.s;
  const int64_t first = task.first_row * s.width, pixels = task.rows * s.width;
  buffer.resize(std::max<size_t>(buffer.size(), pixels));
  distance_pixels<T, A>(s.channels_last(), pixel<T>(pair.student, s, task.image, first),
                        pixel<T>(pair.teacher, pair.t, task.image, first), strides(pair), s.channels, pixels, eps,
                        buffer.data());
  const int64_t width = int64_t(level.columns.weight.size());
  A* out = level.rows.get() + (task.image * s.height + task.first_row) * width;
  for (int64_t row = 0; row < task.rows; ++row)
    stretch_row(buffer.data() + row * s.width, level.columns, out + row * width);
}

// student, teacher: L x (B, C_l, H_l, W_l) -> (B, 1, size)
Tensor anomaly_map(std::vector<Tensor> student, std::vector<Tensor> teacher, std::vector<int64_t> groups,
                   std::vector<double> weights, std::vector<int64_t> grid, std::vector<int64_t> size,
                   std::string combine, double eps) {
  check_pyramids(student, teacher);
  check_size("grid", grid);
  check_size("size", size);
  const Plan plan = make_plan(combine, groups, weights, int64_t(student.size()));
  std::vector<Pair> pairs;
  for (size_t level = 0; level < student.size(); ++level)
    pairs.push_back(readable_pair(student[level], teacher[level]));
  const std::vector<Task> tasks = make_tasks(pairs);
  const int64_t batch = student[0].size(0);
  Tensor out = empty_map(student[0], batch, size[0], size[1]);
  SF_DISPATCH(student[0].scalar_type(), T, A, {
    std::vector<Stretched<A>> levels;
    for (const Pair& pair : pairs) levels.emplace_back(batch, pair.s.height, pair.s.width, grid[1]);
    torch::stable::parallel_for(0, int64_t(tasks.size()), kTasksPerThread, [&](int64_t i, int64_t end) {
      std::vector<A> buffer;
      for (; i < end; ++i) {
        const Task& task = tasks[i];
        run_task<T, A>(task, pairs[task.level], A(eps), buffer, levels[task.level]);
      }
    });
    combine_stretched(plan, levels, batch, grid, size, static_cast<A*>(out.mutable_data_ptr()));
  })
  return out;
}

}  // namespace
}  // namespace stadfast::cpu

STABLE_TORCH_LIBRARY_IMPL(stadfast, CPU, m) { m.impl("anomaly_map", TORCH_BOX(&stadfast::cpu::anomaly_map)); }
