// Processors that multiply bfloat16 and sum in float32: by tiles, 16 x 32 by 32 x 16, on the matrix units of recent
// Intel processors (AMX), or by vectors (AVX512-BF16: Zen 4 and later, Cooper Lake).
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
#include <cstdlib>

// Of all that works on tiles; only what asks `amx_available` uses the matrix units.
#define SF_TILED __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace stadfast::cpu {

// Whether there are such vectors.
inline bool bf16_available() {
  static const bool available = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return available;
}

// Whether processor and kernel let this process use the matrix units; asked once. STADFAST_AMX=0: as if not.
inline bool amx_available() {
  static const bool available = [] {
    const char* wanted = std::getenv("STADFAST_AMX");
    unsigned a = 0, b = 0, c = 0, d = 0;
    if ((wanted && *wanted == '0') || !bf16_available() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return available;
}

SF_TILED inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// What a compiler that does not know what the tile instructions read and write must not move across them.
#define SF_FENCE asm volatile("" ::: "memory")

struct TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Eight tiles of 16 rows of 64 bytes for the time that it lives, where there are matrix units; others' shapes are put
// back, since oneDNN keeps its own between two calls.
class TileScope {
 public:
  SF_TILED TileScope() {
    if (!amx_available()) return;
    _tile_storeconfig(&before_);
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  SF_TILED ~TileScope() {
    if (!amx_available()) return;
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }

 private:
  TileShapes before_;
};

}  // namespace stadfast::cpu
#else
namespace stadfast::cpu {

inline bool bf16_available() { return false; }
inline bool amx_available() { return false; }

}  // namespace stadfast::cpu
#endif
