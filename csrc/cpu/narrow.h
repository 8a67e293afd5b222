// float -> bfloat16, to nearest even, without the branch that keeps c10's conversion from being vectorised.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../macros.h"

namespace stadfast::cpu {

template <class T, class A>
SF_INLINE T narrow(A value) {
  using torch::headeronly::BFloat16;
  if constexpr (std::is_same_v<T, BFloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return BFloat16(uint16_t(value != value ? 0x7fc0u : rounded), BFloat16::from_bits());
  } else {
    return T(value);
  }
}

}  // namespace stadfast::cpu
