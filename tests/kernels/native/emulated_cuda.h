// Just enough of CUDA to run the kernels of csrc/*.cu on a CPU: every thread of a block is a fiber, blocks run one after
// the other, and threads change at barriers and warp collectives only. A warp whose lanes meet in different collectives, a
// barrier that some threads never reach and a misaligned 16-byte access end the process with a message.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // blocks run one after the other

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y, unsigned z) : x(x), y(y), z(z) {}
};
struct uint4 {
  uint32_t x, y, z, w;
};

namespace emulated {

struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf jump;  // where it goes on
  bool finished, at_barrier;
  int collectives;     // warp collectives passed
  const char* kind[2];  // of this and the previous collective: a lane may be one ahead of the others
  uint32_t bits[2];
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline const std::function<void()>* body;
inline int current;
inline unsigned most_blocks = ~0u;  // of a grid's first dimension, only so many last ones run
inline dim3 thread_index, block_index, block_size, grid_size;

[[noreturn]] inline void stop(const char* message) {
  std::fprintf(stderr, "emulated CUDA: %s (block %u %u %u, thread %d)\n", message, block_index.x, block_index.y,
               block_index.z, current);
  std::abort();
}

// A context starts a fiber once; jumps switch from then on, because they need no system call.
inline void yield() {
  if (_setjmp(fibers[current].jump) == 0) _longjmp(scheduler, 1);
}

inline void run_fiber() {
  for (;;) {
    (*body)();
    fibers[current].finished = true;
    yield();
  }
}

inline void resume() {
  thread_index.x = static_cast<unsigned>(current);
  if (_setjmp(scheduler) != 0) return;
  Fiber& f = fibers[current];
  if (f.stack != nullptr) _longjmp(f.jump, 1);
  constexpr size_t stack_bytes = 64 << 10;
  f.stack.reset(new char[stack_bytes]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = f.stack.get();
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
}

inline void run_block(int threads) {
  const bool backwards = std::getenv("EMULATED_BACKWARDS") != nullptr;  // a missing barrier shows in one of the orders
  if (fibers.empty()) fibers.resize(1024);  // they never move: a fiber's stack refers to them
  for (int t = 0; t < threads; ++t) {
    fibers[t].finished = fibers[t].at_barrier = false;
    fibers[t].collectives = 0;
  }
  for (;;) {
    int left = 0, waiting = 0;
    for (int i = 0; i < threads; ++i) {
      current = backwards ? threads - 1 - i : i;
      Fiber& f = fibers[current];
      if (!f.finished && !f.at_barrier) resume();
      left += !f.finished;
      waiting += f.at_barrier;
    }
    if (left == 0) return;
    if (waiting == left) {
      if (left != threads) stop("a barrier that some threads of the block never reach");
      for (int t = 0; t < threads; ++t) fibers[t].at_barrier = false;
    }
  }
}

// Hands every lane of the warp the bits of all 32.
inline void collect(const char* kind, uint32_t own, uint32_t (&all)[32]) {
  const int slot = fibers[current].collectives++ & 1, first = current / 32 * 32;
  fibers[current].bits[slot] = own;
  fibers[current].kind[slot] = kind;
  yield();
  for (int lane = 0; lane < 32; ++lane) {
    const Fiber& f = fibers[first + lane];
    const int ahead = f.collectives - fibers[current].collectives;
    if (ahead < 0 || ahead > 1 || std::strcmp(f.kind[slot], kind) != 0) stop("lanes of a warp in different collectives");
    all[lane] = f.bits[slot];
  }
}

}  // namespace emulated

#define threadIdx ::emulated::thread_index
#define blockIdx ::emulated::block_index
#define gridDim ::emulated::grid_size
#define blockDim ::emulated::block_size

inline void __syncthreads() {
  ::emulated::fibers[::emulated::current].at_barrier = true;
  ::emulated::yield();
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  uint32_t own, all[32];
  std::memcpy(&own, &value, sizeof own);
  ::emulated::collect("shuffle", own, all);
  std::memcpy(&value, &all[(::emulated::current % 32) ^ mask], sizeof value);
  return value;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  uint32_t all[32];
  ::emulated::collect("ballot", value, all);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= all[lane] << lane;
  return bits;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline uint4 emulated_load16(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) ::emulated::stop("misaligned 16-byte access");
  uint4 words;
  std::memcpy(&words, p, sizeof words);
  return words;
}
inline void emulated_store16(void* p, uint4 words) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) ::emulated::stop("misaligned 16-byte access");
  std::memcpy(p, &words, sizeof words);
}

inline void emulate(dim3 grid, int threads, const std::function<void()>& kernel) {
  ::emulated::body = &kernel;
  ::emulated::grid_size = grid;
  ::emulated::block_size.x = static_cast<unsigned>(threads);
  ::emulated::block_size.y = ::emulated::block_size.z = 1;
  dim3& at = ::emulated::block_index;
  for (at.z = 0; at.z < grid.z; ++at.z)
    for (at.y = 0; at.y < grid.y; ++at.y)
      for (at.x = grid.x > ::emulated::most_blocks ? grid.x - ::emulated::most_blocks : 0; at.x < grid.x; ++at.x) ::emulated::run_block(threads);
  ::emulated::body = nullptr;
}
