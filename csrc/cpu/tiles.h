// The matrix units of recent Intel processors (AMX): products of bfloat16 tiles, 16 x 32 by 32 x 16, summed in float32.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 16) || (!defined(__clang__) && __GNUC__ >= 12))
#define SF_TILES 1

#include <cpuid.h>
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 suspects the header below
#endif
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#define SF_TILED __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace stadfast::cpu {

// Whether processor and kernel let this process use them; asked once.
inline bool amx_available() {
  static const bool available = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool tiles = (d >> 22 & 1) && (d >> 24 & 1), avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
    if (!tiles || !avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return available;
}

// What a compiler that does not know what the tile instructions read and write must not move across them.
#define SF_FENCE asm volatile("" ::: "memory")

struct TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Eight tiles of 16 rows of 64 bytes for the time that it lives; others' shapes are put back, since oneDNN keeps its
// own between two calls.
class TileScope {
 public:
  SF_TILED TileScope() {
    _tile_storeconfig(&before_);
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  SF_TILED ~TileScope() {
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }

 private:
  TileShapes before_;
};

}  // namespace stadfast::cpu
#endif
