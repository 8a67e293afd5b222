// From a tensor's dtype to C++ types: SF_DISPATCH(dtype, T, A, { ... }) runs the block with T the element type and
// A the type in which sums are formed: float32 for float32 and the half types, float64 for float64.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "check.h"

#define SF_CASE(TAG, TYPE, ACCUMULATOR, T, A, ...) \
  case ::stadfast::ScalarType::TAG: {              \
    using T [[maybe_unused]] = TYPE;               \
    using A [[maybe_unused]] = ACCUMULATOR;        \
    __VA_ARGS__                                    \
    break;                                         \
  }

#define SF_DISPATCH(DTYPE, T, A, ...)                                            \
  switch (DTYPE) {                                                               \
    SF_CASE(Float, float, float, T, A, __VA_ARGS__)                              \
    SF_CASE(Double, double, double, T, A, __VA_ARGS__)                           \
    SF_CASE(Half, ::torch::headeronly::Half, float, T, A, __VA_ARGS__)           \
    SF_CASE(BFloat16, ::torch::headeronly::BFloat16, float, T, A, __VA_ARGS__)   \
    default:                                                                     \
      SF_CHECK(false, "expected float32, float64, float16 or bfloat16 tensors"); \
  }

#define SF_DISPATCH_MAPS(DTYPE, A, ...)                    \
  switch (DTYPE) {                                         \
    SF_CASE(Float, float, float, T_, A, __VA_ARGS__)       \
    SF_CASE(Double, double, double, T_, A, __VA_ARGS__)    \
    default:                                               \
      SF_CHECK(false, "expected float32 or float64 maps"); \
  }
