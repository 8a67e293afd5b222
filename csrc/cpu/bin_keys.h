// The 16-bit keys (order_key.h) of a stretch of scores, by vector instructions.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace stadfast::cpu {

void bin_keys(const float* scores, int64_t n, uint16_t* keys);
void bin_keys(const torch::headeronly::Half* scores, int64_t n, uint16_t* keys);
void bin_keys(const torch::headeronly::BFloat16* scores, int64_t n, uint16_t* keys);

// Widens [*low, *high] to hold n keys.
void widen_range(const uint16_t* keys, int64_t n, uint16_t* low, uint16_t* high);

}  // namespace stadfast::cpu

// The types that have such keys: SF_DISPATCH_KEYS(dtype, T, { ... }).
#define SF_DISPATCH_KEYS(DTYPE, T, ...)                                         \
  switch (DTYPE) {                                                              \
    SF_CASE(Float, float, float, T, A_, __VA_ARGS__)                            \
    SF_CASE(Half, ::torch::headeronly::Half, float, T, A_, __VA_ARGS__)         \
    SF_CASE(BFloat16, ::torch::headeronly::BFloat16, float, T, A_, __VA_ARGS__) \
    default:                                                                    \
      SF_CHECK(false, "scores: expected float32, float16 or bfloat16");         \
  }
