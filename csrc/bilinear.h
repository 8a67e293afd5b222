// Bilinear sampling as F.interpolate(mode="bilinear", align_corners=False) does it, shared by CPU and CUDA.
#pragma once

#include <cstdint>

#include "macros.h"

namespace stadfast {

// Output sample i of n_out lies between the inputs `lower` and `upper` of n_in, at `weight` from lower to upper.
template <class A>
struct Sample {
  int32_t lower;
  int32_t upper;
  A weight;
};

template <class A>
SF_HOST_DEVICE Sample<A> sample(int64_t i, int64_t n_in, int64_t n_out) {
  if (n_in == n_out) return {int32_t(i), int32_t(i), A(0)};
  const A scale = A(n_in) / A(n_out);
  A position = scale * (A(i) + A(0.5)) - A(0.5);
  if (position < A(0)) position = A(0);
  int32_t lower = int32_t(position);
  if (lower > n_in - 1) lower = int32_t(n_in - 1);
  const int32_t upper = lower + (lower < n_in - 1 ? 1 : 0);
  return {lower, upper, position - A(lower)};
}

template <class A>
SF_HOST_DEVICE A lerp(A lower, A upper, A weight) {
  return lower + weight * (upper - lower);
}

}  // namespace stadfast
