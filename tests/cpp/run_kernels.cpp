// The CUDA kernels as C functions for tests/ops/test_cuda_kernels.py.
#include "emulator.h"
//
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../../csrc/cuda/combine_kernel.cuh"
#include "../../csrc/cuda/distance_levels.cuh"

using namespace stadfast;
using namespace stadfast::cuda;

// As the ctypes structures of the test.
struct LevelArguments {
  int64_t channels_last, channels, pixels;
  View student, teacher, gradient;
  void* map;
};

struct MapArguments {
  const void* data;
  int64_t height, width;
  double weight;
  int64_t opens, closes;
};

template <class T, class A>
void distance(bool backward, unsigned blocks, int64_t images, int levels, const LevelArguments* arguments, double eps) {
  DistanceLevels<T, A> all{};
  all.images = images;
  all.eps = A(eps);
  for (int l = 0; l < levels; ++l) {
    const LevelArguments& a = arguments[l];
    add_level(&all, l, a.channels_last != 0, a.channels, a.pixels, a.student, a.teacher, a.gradient, a.map);
  }
  emulator::launch(blocks, kThreads, backward ? distance_kernel<T, A, true> : distance_kernel<T, A, false>, all);
}

template <class A>
void combine(unsigned blocks, Combination<A> c, const MapArguments* maps, void* out) {
  for (int l = 0; l < c.levels; ++l) {
    const MapArguments& m = maps[l];
    c.level[l] = {
        static_cast<const A*>(m.data), int32_t(m.height), int32_t(m.width), A(m.weight), m.opens != 0, m.closes != 0};
  }
  emulator::launch(blocks, kCombineThreads, combine_kernel<A>, c, static_cast<A*>(out));
}

#pragma GCC visibility push(default)
extern "C" {

#define DISTANCE(NAME, T, A)                                                                                       \
  void distance_##NAME(int backward, unsigned blocks, int64_t images, int levels, const LevelArguments* arguments, \
                       double eps) {                                                                               \
    distance<T, A>(backward != 0, blocks, images, levels, arguments, eps);                                         \
  }
DISTANCE(float32, float, float)
DISTANCE(float64, double, double)
DISTANCE(float16, torch::headeronly::Half, float)
DISTANCE(bfloat16, torch::headeronly::BFloat16, float)

#define COMBINE(NAME, A)                                                                                        \
  void combine_##NAME(unsigned blocks, int64_t images, int32_t grid_height, int32_t grid_width, int32_t height, \
                      int32_t width, int32_t levels, const MapArguments* maps, void* out) {                     \
    combine<A>(blocks, {images, grid_height, grid_width, height, width, levels, {}}, maps, out);                \
  }
COMBINE(float32, float)
COMBINE(float64, double)
}
#pragma GCC visibility pop
