#include "bin_keys.h"

#include "../macros.h"
#include "../order_key.h"

namespace stadfast::cpu {

#define SF_KEYS(T)                                                                              \
  SF_CLONES void bin_keys(const T* scores, int64_t n, uint16_t* keys) {                         \
    _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) keys[i] = uint16_t(bin_key(scores[i])); \
  }

SF_KEYS(float)
SF_KEYS(torch::headeronly::Half)
SF_KEYS(torch::headeronly::BFloat16)

SF_CLONES void widen_range(const uint16_t* keys, int64_t n, uint16_t* low, uint16_t* high) {
  uint16_t least = *low, most = *high;
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    least = keys[i] < least ? keys[i] : least;
    most = keys[i] > most ? keys[i] : most;
  }
  *low = least, *high = most;
}

}  // namespace stadfast::cpu
