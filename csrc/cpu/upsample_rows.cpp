#include "upsample_rows.h"

#include <algorithm>

namespace stadfast::cpu {
namespace {

enum class Write { kSet, kAdd, kMultiply };

constexpr int64_t kGrain = 16384;  // output pixels below which a second thread costs more than it brings

#define SF_BODY      \
  template <class A> \
  SF_INLINE void

SF_BODY stretch_body(const A* row, const int32_t* lower, const int32_t* upper, const A* weight, int64_t n, A* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = lerp(row[lower[i]], row[upper[i]], weight[i]);
}

SF_BODY lerp_body(Write write, A gain, const A* lower, const A* upper, A weight, int64_t n, A* out) {
  if (write == Write::kSet) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = gain * lerp(lower[i], upper[i], weight);
  } else if (write == Write::kAdd) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += gain * lerp(lower[i], upper[i], weight);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] *= gain * lerp(lower[i], upper[i], weight);
  }
}

SF_BODY multiply_body(const A* factor, int64_t n, A* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] *= factor[i];
}

// target_clones takes no templates: one named clone per type.
#define SF_LEAVES(A)                                                                                           \
  SF_CLONES void stretch(const A* row, const int32_t* lower, const int32_t* upper, const A* weight, int64_t n, \
                         A* out) {                                                                             \
    stretch_body(row, lower, upper, weight, n, out);                                                           \
  }                                                                                                            \
  SF_CLONES void lerp_rows(Write write, A gain, const A* lower, const A* upper, A weight, int64_t n, A* out) { \
    lerp_body(write, gain, lower, upper, weight, n, out);                                                      \
  }                                                                                                            \
  SF_CLONES void multiply(const A* factor, int64_t n, A* out) { multiply_body(factor, n, out); }

SF_LEAVES(float)
SF_LEAVES(double)

// One row of the combined map at the grid's resolution; `scratch` holds one row.
template <class A>
void combine_row(const Plan& plan, const std::vector<Stretched<A>>& levels, int64_t b, int64_t y, int64_t height,
                 int64_t width, A* scratch, A* out) {
  for (int32_t i = 0; i < plan.levels; ++i) {
    const Stretched<A>& level = levels[plan.order[i]];
    const Sample<A> s = sample<A>(y, level.height, height);
    const A* image = level.rows.get() + b * level.height * width;
    const A *lower = image + s.lower * width, *upper = image + s.upper * width;
    const A gain = A(plan.weight[i]);
    if (i == 0) {
      lerp_rows(Write::kSet, gain, lower, upper, s.weight, width, out);
    } else if (plan.mode == Mode::kSum || plan.group[i] == 0) {
      lerp_rows(Write::kAdd, gain, lower, upper, s.weight, width, out);
    } else if (plan.opens(i) && plan.closes(i)) {
      lerp_rows(Write::kMultiply, gain, lower, upper, s.weight, width, out);
    } else {
      lerp_rows(plan.opens(i) ? Write::kSet : Write::kAdd, gain, lower, upper, s.weight, width, scratch);
      if (plan.closes(i)) multiply(scratch, width, out);
    }
  }
}

}  // namespace

template <class A>
void stretch_row(const A* row, const Samples<A>& columns, A* out) {
  stretch(row, columns.lower.data(), columns.upper.data(), columns.weight.data(), int64_t(columns.weight.size()), out);
}

template <class A>
void combine_stretched(const Plan& plan, const std::vector<Stretched<A>>& levels, int64_t batch,
                       const std::vector<int64_t>& grid, const std::vector<int64_t>& size, A* out) {
  const bool at_grid = grid == size;
  std::vector<Stretched<A>> combined;
  if (!at_grid) combined.emplace_back(batch, grid[0], grid[1], size[1]);
  torch::stable::parallel_for(0, batch * grid[0], std::max<int64_t>(1, kGrain / grid[1]), [&](int64_t i, int64_t end) {
    std::vector<A> scratch(2 * grid[1]);
    for (; i < end; ++i) {
      A* row = at_grid ? out + i * grid[1] : scratch.data() + grid[1];
      combine_row(plan, levels, i / grid[0], i % grid[0], grid[0], grid[1], scratch.data(), row);
      if (!at_grid) stretch_row(row, combined[0].columns, combined[0].rows.get() + i * size[1]);
    }
  });
  if (at_grid) return;
  torch::stable::parallel_for(0, batch * size[0], std::max<int64_t>(1, kGrain / size[1]), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const Sample<A> s = sample<A>(i % size[0], grid[0], size[0]);
      const A* image = combined[0].rows.get() + i / size[0] * grid[0] * size[1];
      lerp_rows(Write::kSet, A(1), image + s.lower * size[1], image + s.upper * size[1], s.weight, size[1],
                out + i * size[1]);
    }
  });
}

#define SF_INSTANTIATE(A)                                                                    \
  template void stretch_row<A>(const A*, const Samples<A>&, A*);                             \
  template void combine_stretched<A>(const Plan&, const std::vector<Stretched<A>>&, int64_t, \
                                     const std::vector<int64_t>&, const std::vector<int64_t>&, A*);

SF_INSTANTIATE(float)
SF_INSTANTIATE(double)

}  // namespace stadfast::cpu
