// The CUDA kernels of the metrics as C functions for tests/ops/test_cuda_counting.py.
#include "warp_emulator.h"
//
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../../csrc/cuda/counting_kernel.cuh"
#include "../../csrc/cuda/label_kernel.cuh"

using namespace stadfast;
using namespace stadfast::cuda;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

namespace {

Scores describe(int count, const void* const* data, const int64_t* size) {
  Scores scores{};
  for (int i = 0; i < count; ++i) scores.data[i] = data[i], scores.size[i] = size[i];
  return scores;
}

template <class T>
void histogram(unsigned blocks, int count, const void* const* data, const int64_t* size, int64_t* counts) {
  std::vector<Count> copies(kCopies * kBins);
  emulator::launch({blocks, unsigned(count)}, kThreads, count_bins<T>, describe(count, data, size), copies.data());
  emulator::launch({unsigned(kBins / kThreads), 1}, kThreads, sum_copies<Count>, copies.data(), counts);
}

template <class T, class A>
void ranks(unsigned blocks, int count, const void* const* data, const int64_t* size, int64_t n, const void* edges,
           int64_t* counts) {
  std::vector<Key<A>> keys(n + 2);
  std::vector<int32_t> first(2 * n + 66, -1);
  const auto enough = [](int64_t threads) { return Dim3{unsigned((threads + kThreads - 1) / kThreads), 1}; };
  emulator::launch(enough(n + 2), kThreads, key_edges<A>, static_cast<const A*>(edges), n, keys.data());
  if (n > 0)
    emulator::launch(enough(2 * n + 66), kThreads, fill_cells<Key<A>>, keys.data(), n, first.data(), 2 * n + 66);
  emulator::launch({blocks, unsigned(count)}, kThreads, count_ranks<T, A>, describe(count, data, size), keys.data(), n,
                   first.data(), reinterpret_cast<Count*>(counts));
}

}  // namespace

extern "C" {

void label(unsigned blocks, const uint8_t* masks, int64_t images, int64_t height, int64_t width, int32_t* labels,
           int64_t* counts) {
  const int64_t tiles = (height * width + kTile - 1) / kTile;
  std::vector<int32_t> tile_roots(images * tiles);
  const LabelImages all{masks, labels, tile_roots.data(), counts, images, height, width, tiles};
  for (const auto kernel : {init_labels, unite_labels, flatten_labels, scan_tiles, number_roots, finish_labels})
    emulator::launch({blocks, 1}, kThreads, kernel, all);
}

#define COUNTING(NAME, T, A)                                                                             \
  void ranks_##NAME(unsigned blocks, int count, const void* const* data, const int64_t* size, int64_t n, \
                    const void* edges, int64_t* counts) {                                                \
    ranks<T, A>(blocks, count, data, size, n, edges, counts);                                            \
  }
COUNTING(float32, float, float)
COUNTING(float64, double, double)
COUNTING(float16, Half, float)
COUNTING(bfloat16, BFloat16, float)

#define BINNING(NAME, T)                                                                                             \
  void histogram_##NAME(unsigned blocks, int count, const void* const* data, const int64_t* size, int64_t* counts) { \
    histogram<T>(blocks, count, data, size, counts);                                                                 \
  }
BINNING(float32, float)
BINNING(float16, Half)
BINNING(bfloat16, BFloat16)
}
