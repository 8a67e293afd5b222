// Floats as unsigned integers of the same order, shared by CPU and CUDA: x < y exactly if order_key(x) < order_key(y).
// Both zeros have one key. Every finite key lies strictly between those of the infinities; NaNs lie beyond them.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace stadfast {

template <class A>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class A>
using Key = typename KeyOf<A>::type;

template <class K>
SF_HOST_DEVICE K flip_signed(K bits) {
  constexpr K sign = K(K(1) << (8 * sizeof(K) - 1));
  return K(bits & sign ? ~bits : bits | sign);
}

template <class A>
SF_HOST_DEVICE Key<A> order_key(A x) {
  x += A(0);  // -0 becomes 0
  Key<A> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return flip_signed(bits);
}

template <class K>
SF_HOST_DEVICE bool is_finite_key(K key) {
  constexpr K infinity = sizeof(K) == 4 ? K(0x7f800000u) : K(0x7ff0000000000000ull);
  constexpr K sign = K(1) << (8 * sizeof(K) - 1);
  return key > K(~(infinity | sign)) && key < (infinity | sign);
}

// The 16-bit key by which scores are binned: all of a half type's bits, the upper half of float32's (its bfloat16,
// truncated).
constexpr int64_t kBins = 65536;

SF_HOST_DEVICE uint32_t bin_key(float x) { return order_key(x) >> 16; }
SF_HOST_DEVICE uint32_t half_key(uint16_t bits) { return flip_signed(uint16_t(bits == 0x8000 ? 0 : bits)); }
SF_HOST_DEVICE uint32_t bin_key(torch::headeronly::Half x) { return half_key(x.x); }
SF_HOST_DEVICE uint32_t bin_key(torch::headeronly::BFloat16 x) { return half_key(x.x); }

}  // namespace stadfast
