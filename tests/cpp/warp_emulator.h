// Runs CUDA kernels that vote within warps and count with atomics on the host, one fiber per thread. Unlike
// emulator.h it lets warps and lanes run apart: a fiber waits only where the hardware would, and gives way before
// every atomic, so that other threads' updates come in between.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // one block runs at a time

struct Dim3 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline Dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace emulator {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  bool done = false;
};

// Threads that meet: all values are exchanged once everyone who is named by `members` has arrived.
struct Meeting {
  unsigned arrived = 0;
  unsigned generation = 0;
  uint64_t brought[32], taken[32];
};

inline std::vector<Fiber> fibers;
inline std::map<std::pair<unsigned, unsigned>, Meeting> meetings;  // by warp and member mask
inline unsigned at_barrier, barriers;
inline ucontext_t scheduler;
inline std::function<void()> body;

inline void enter() {
  const unsigned self = threadIdx.x;
  body();
  fibers[self].done = true;
  swapcontext(&fibers[self].context, &scheduler);
}

inline void give_way() {
  const unsigned self = threadIdx.x;
  swapcontext(&fibers[self].context, &scheduler);
}

inline const uint64_t* meet(unsigned members, uint64_t value) {
  const unsigned lane = threadIdx.x % 32;
  Meeting& meeting = meetings[{threadIdx.x / 32, members}];
  const unsigned generation = meeting.generation;
  meeting.brought[lane] = value;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived == members) {
    std::memcpy(meeting.taken, meeting.brought, sizeof meeting.taken);
    meeting.arrived = 0;
    ++meeting.generation;
  }
  while (meeting.generation == generation) give_way();
  return meeting.taken;  // until these members meet again, which takes all of them
}

inline void run_block(unsigned threads) {
  fibers = std::vector<Fiber>(threads);
  meetings.clear();
  at_barrier = 0;
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, enter, 0);
  }
  bool running = true;
  for (int64_t round = 0; running; ++round) {
    if (round > 10'000'000) std::abort();  // somebody waits for ever
    running = false;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].done) continue;
      running = true;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
  }
}

template <class Kernel, class... Arguments>
void launch(Dim3 blocks, unsigned threads, Kernel kernel, const Arguments&... arguments) {
  gridDim = blocks;
  blockDim = {threads, 1};
  body = [&] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) run_block(threads);
}

}  // namespace emulator

inline void __syncthreads() {
  const unsigned barrier = emulator::barriers;
  if (++emulator::at_barrier == blockDim.x) {
    emulator::at_barrier = 0;
    ++emulator::barriers;
  }
  while (emulator::barriers == barrier) emulator::give_way();
}

inline unsigned __ballot_sync(unsigned members, int vote) {
  const uint64_t* votes = emulator::meet(members, vote != 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((members >> lane & 1u) && votes[lane]) ballot |= 1u << lane;
  return ballot;
}

inline unsigned __match_any_sync(unsigned members, unsigned long long value) {
  const uint64_t* values = emulator::meet(members, value);
  unsigned same = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((members >> lane & 1u) && values[lane] == value) same |= 1u << lane;
  return same;
}

inline int32_t __shfl_up_sync(unsigned members, int32_t value, unsigned step) {
  const uint64_t* values = emulator::meet(members, uint32_t(value));
  const unsigned lane = threadIdx.x % 32;
  return lane < step ? value : int32_t(values[lane - step]);
}

template <class V>
V __shfl_xor_sync(unsigned members, V value, int offset) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  bits = emulator::meet(members, bits)[(threadIdx.x % 32) ^ unsigned(offset)];
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class V>
V __ldg(const V* address) {
  return *address;
}

template <class V>
V atomicMin(V* address, V value) {
  emulator::give_way();
  const V before = *address;
  if (value < before) *address = value;
  return before;
}

template <class V>
V atomicAdd(V* address, V value) {
  emulator::give_way();
  const V before = *address;
  *address += value;
  return before;
}
