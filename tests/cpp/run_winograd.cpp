// Winograd's convolution with the instructions of older processors, for tests/ops/test_winograd_blocks.py.
#include <vector>

#include "../../csrc/cpu/winograd.h"

using namespace stadfast::cpu;

// -> whether this processor has them: 0 plain, 1 AVX2, 2 AVX-512
extern "C" bool run_winograd(int instructions, const float* input, const float* weights, const float* bias,
                             int64_t batch, int64_t channels, int64_t filters, int64_t height, int64_t width,
                             float* output) {
  using Function = void (*)(const Winograd<float>&, const TileBlock<float>&);
  std::vector<Function> functions{plain_block};
#if defined(__x86_64__)
  if (has_avx2()) functions.push_back(avx2_block);
  if (has_avx512()) functions.push_back(avx512_block);
#endif
  if (instructions >= int(functions.size())) return false;
  Winograd<float> c{};
  c.groups = 1, c.channels = channels, c.filters = filters, c.rows_above = 1, c.columns_left = 1;
  c.in = {batch, channels, height, width, channels * height * width, 1, channels};
  c.out = {batch, filters, height, width, filters * height * width, 1, filters};
  c.input = input, c.weights = weights, c.bias = bias, c.output = output, c.rectify = true;
  TileBlock<float> block{0, batch * c.tiles(), 0, filters, nullptr, nullptr, nullptr};
  const std::vector<float> zeros(channels);
  std::vector<float> values(kPlaces * block.room() * channels), products(kPlaces * block.room() * filters);
  block.zeros = zeros.data(), block.values = values.data(), block.products = products.data();
  functions[instructions](c, block);
  return true;
}
