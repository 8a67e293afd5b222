// The matrix units' instructions (AMX) on the host's memory, for processors that have none.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

inline uint8_t tiles[8][16][64];

inline void load(int tile, const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, 64);
}

inline void store(int tile, void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], 64);
}

inline float widen(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// Each row's pairs of values by the second tile's rows of pairs.
inline void multiply(int sums, int left, int right) {
  for (int row = 0; row < 16; ++row) {
    float sum[16];
    uint16_t a[32], b[32];
    std::memcpy(sum, tiles[sums][row], 64);
    std::memcpy(a, tiles[left][row], 64);
    for (int pair = 0; pair < 16; ++pair) {
      std::memcpy(b, tiles[right][pair], 64);
      for (int column = 0; column < 32; ++column) sum[column / 2] += widen(a[2 * pair + column % 2]) * widen(b[column]);
    }
    std::memcpy(tiles[sums][row], sum, 64);
  }
}

}  // namespace emulated

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero(tile) std::memset(emulated::tiles[tile], 0, sizeof(emulated::tiles[tile]))
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_dpbf16ps(sums, left, right) emulated::multiply(sums, left, right)
