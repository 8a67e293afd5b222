// Both ways of a convolution's sums, on one machine: for tests/ops/test_convolve_sums.py.
#include "emulated_tiles.h"
//
#include "../../csrc/cpu/convolve.h"

// `rows`: under the windows, each so long; `step`: from pixel to pixel; `sums`: (32 pixels, 32 filters), at 64 bytes
// -> whether this processor can
extern "C" bool run_convolve(bool vectors, const uint16_t* rows, int64_t row_length, const uint16_t* filters,
                             int64_t kernel_rows, int64_t kernel_columns, int64_t channels, int64_t step, float* sums) {
#ifdef SF_TILES
  using namespace stadfast::cpu;
  if (!bf16_available()) return false;
  Convolution c{};
  c.kernel_rows = kernel_rows, c.kernel_columns = kernel_columns, c.channels = channels;
  const uint16_t* windows[kMaxWindows];
  for (int64_t i = 0; i < kernel_rows; ++i) windows[i] = rows + i * row_length;
  const Tiles tiles{windows, 0, kTile * step, 0, step, {kTile, kTile}};
  (vectors ? multiply_vectors : multiply_tiles)(c, tiles, filters, sums);
  return true;
#else
  return false;
#endif
}
