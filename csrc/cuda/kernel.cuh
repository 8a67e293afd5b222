// What every kernel uses; no torch here, so that the tests can run the kernels on the host (tests/cpp/emulator.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "../macros.h"

namespace stadfast::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block

// kCount neighbours, moved by one instruction; the address has to be a multiple of the size.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T value[kCount];
};

template <class T>
constexpr int kVector = 16 / int(sizeof(T));  // elements of the widest load

template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned int;
};
template <>
struct Word<8> {
  using Type = unsigned long long;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// Through the read-only path, so that loads may be moved ahead of stores: never of what the kernel writes.
template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load(const T* from) {
  using W = typename Word<kCount* int(sizeof(T))>::Type;
  const W word = __ldg(reinterpret_cast<const W*>(from));
  Pack<T, kCount> pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
}

template <class T>
__device__ __forceinline__ T load_one(const T* from) {
  return load<T, 1>(from).value[0];
}

template <class T, int kCount>
__device__ __forceinline__ void store(T* to, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }

struct Quotient {
  int64_t quotient, remainder;
};

// Of numbers that are not negative. A 64-bit division is a long subroutine: avoided where the numbers are small.
__device__ __forceinline__ Quotient divide(int64_t a, int64_t b) {
  if ((uint64_t(a) | uint64_t(b)) >> 32 == 0) {
    const uint32_t quotient = uint32_t(a) / uint32_t(b);
    return {int64_t(quotient), int64_t(uint32_t(a) - quotient * uint32_t(b))};
  }
  const int64_t quotient = a / b;
  return {quotient, a - quotient * b};
}

}  // namespace stadfast::cuda
