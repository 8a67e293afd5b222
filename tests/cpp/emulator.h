// Runs CUDA kernels on the host, thread by thread, so that their indexing and their barriers can be tested without a
// GPU. Every thread of a block is a fiber; a barrier (or a shuffle, which is two) hands over to the next fiber. It
// aborts where threads of a block meet different barriers, and at misaligned vector loads. It knows nothing of races
// between barriers, of warps or of speed.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct Dim3 {
  unsigned x;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline Dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace emulator {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  bool done = false;
  const char* barrier = nullptr;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline std::function<void()> body;
alignas(16) inline char exchange[1024][16];

inline void enter() {
  const unsigned self = threadIdx.x;
  body();
  fibers[self].done = true;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void wait(const char* barrier) {
  const unsigned self = threadIdx.x;
  fibers[self].barrier = barrier;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void run_block(unsigned threads) {
  fibers = std::vector<Fiber>(threads);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, enter, 0);
  }
  while (!fibers[0].done) {
    for (unsigned i = 0; i < threads; ++i) {
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
      if (fibers[i].done != fibers[0].done || (!fibers[i].done && fibers[i].barrier != fibers[0].barrier)) {
        std::fprintf(stderr, "thread %u of block %u met another barrier than thread 0\n", i, blockIdx.x);
        std::abort();
      }
    }
  }
}

template <class Kernel, class... Arguments>
void launch(unsigned blocks, unsigned threads, Kernel kernel, const Arguments&... arguments) {
  gridDim.x = blocks;
  blockDim.x = threads;
  body = [&] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(threads);
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait("__syncthreads"); }

template <class V>
V __shfl_xor_sync(unsigned, V value, int offset) {
  const unsigned self = threadIdx.x;
  std::memcpy(emulator::exchange[self], &value, sizeof(V));
  emulator::wait("__shfl_xor_sync");
  std::memcpy(&value, emulator::exchange[self ^ unsigned(offset)], sizeof(V));
  emulator::wait("__shfl_xor_sync, second half");
  return value;
}

template <class V>
V __ldg(const V* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(V) != 0) {
    std::fprintf(stderr, "misaligned load of %zu bytes\n", sizeof(V));
    std::abort();
  }
  return *address;
}
