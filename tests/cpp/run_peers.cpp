// peer_distance's CUDA kernels as C functions for tests/ops/test_cuda_peers.py.
#include "emulator.h"
//
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../../csrc/cuda/peer_launches.cuh"

using namespace stadfast::cuda;

// As the ctypes structures of the test.
struct PairArguments {
  int32_t first, second, group;
  double weight;
};

struct EdgeArguments {
  int32_t factor, other;
};

template <class T, class A>
void distance(unsigned blocks, const PeerShape& shape, int views, const View* view, int pairs,
              const PairArguments* pair, bool squared, void* out) {
  const std::vector<View> all_views(view, view + views);
  const std::vector<PairArguments> all_pairs(pair, pair + pairs);
  for (const auto& all : peer_launches<T, A>(shape, all_views, all_pairs, squared, static_cast<A*>(out)))
    emulator::launch(blocks, kThreads, peer_kernel<T, A>, all);
}

template <class T, class A>
void gradient(unsigned blocks, const PeerShape& shape, int views, const View* view, int self, int edges,
              const EdgeArguments* edge, const void* factors, int64_t pairs, const View& to) {
  for (const auto& all : peer_gradient_launches<T, A>(shape, std::vector<View>(view, view + views), self,
                                                      std::vector<EdgeArguments>(edge, edge + edges),
                                                      static_cast<const A*>(factors), pairs, to))
    emulator::launch(blocks, kThreads, peer_gradient_kernel<T, A>, all);
}

#pragma GCC visibility push(default)
extern "C" {

#define PEERS(NAME, T, A)                                                                                         \
  void distance_##NAME(unsigned blocks, const PeerShape* shape, int views, const View* view, int pairs,           \
                       const PairArguments* pair, int squared, void* out) {                                       \
    distance<T, A>(blocks, *shape, views, view, pairs, pair, squared != 0, out);                                  \
  }                                                                                                               \
  void gradient_##NAME(unsigned blocks, const PeerShape* shape, int views, const View* view, int self, int edges, \
                       const EdgeArguments* edge, const void* factors, int64_t pairs, const View* to) {           \
    gradient<T, A>(blocks, *shape, views, view, self, edges, edge, factors, pairs, *to);                          \
  }
PEERS(float32, float, float)
PEERS(float64, double, double)
PEERS(float16, torch::headeronly::Half, float)
PEERS(bfloat16, torch::headeronly::BFloat16, float)
}
#pragma GCC visibility pop
