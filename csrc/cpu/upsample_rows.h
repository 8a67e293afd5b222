// Separable bilinear upsampling and combination of level maps on the CPU.
//
// Each source row is stretched to the grid's width once (few rows: the levels are small); every output row is then
// a vertical interpolation between stretched rows, which are contiguous and vectorise.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../bilinear.h"
#include "../combine.h"

namespace stadfast::cpu {

// Samples for one direction, in the form that the leaf loops read.
template <class A>
struct Samples {
  std::vector<int32_t> lower, upper;
  std::vector<A> weight;

  Samples(int64_t n_in, int64_t n_out) : lower(n_out), upper(n_out), weight(n_out) {
    for (int64_t i = 0; i < n_out; ++i) {
      const Sample<A> s = sample<A>(i, n_in, n_out);
      lower[i] = s.lower, upper[i] = s.upper, weight[i] = s.weight;
    }
  }
};

// One level with its rows stretched to the grid's width: B x height x grid width.
template <class A>
struct Stretched {
  int64_t height;
  Samples<A> columns;
  std::unique_ptr<A[]> rows;

  Stretched(int64_t batch, int64_t h, int64_t w, int64_t grid_width)
      : height(h), columns(w, grid_width), rows(new A[batch * h * grid_width]) {}
};

template <class A>
void stretch_row(const A* row, const Samples<A>& columns, A* out);

// All levels -> B x size, combined at `grid` and, where size differs, upsampled once more.
template <class A>
void combine_stretched(const Plan& plan, const std::vector<Stretched<A>>& levels, int64_t batch,
                       const std::vector<int64_t>& grid, const std::vector<int64_t>& size, A* out);

}  // namespace stadfast::cpu
