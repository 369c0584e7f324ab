// What the .cu files share: launches, 16-byte accesses, sums over a warp and over a block.
// With INTERMOE_EMULATED the tests compile the same files without CUDA and run the kernels on a CPU.
#pragma once

#include <initializer_list>

#include "common.h"
#include "formulas.h"

#ifdef INTERMOE_EMULATED
#include "emulated_cuda.h"
#else
#include <cuda_runtime.h>
#endif

namespace intermoe {

constexpr int kWarp = 32;
constexpr int kThreads = 128;  // per block, unless a kernel says otherwise
constexpr unsigned kWholeWarp = 0xffffffff;

static inline int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

static inline bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
  return true;
}

struct Place {
  int32_t device;
  void* stream;
};

struct Grid {
  int64_t x, y = 1, z = 1;
};

// Starts a kernel and reports what keeps it from starting. An empty grid is fine and starts nothing.
template <class... Parameters, class... Arguments>
static int32_t launch(const Place& at, void (*kernel)(Parameters...), const Grid& grid, int threads,
                      Arguments... arguments) {
  if (grid.x < 1 || grid.y < 1 || grid.z < 1) return 0;
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
    return fail("a grid of %lld x %lld x %lld blocks is too large", (long long)grid.x, (long long)grid.y,
                (long long)grid.z);
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
#ifdef INTERMOE_EMULATED
  (void)at;
  emulate(blocks, threads, [&] { kernel(arguments...); });
#else
  cudaError_t error = cudaSetDevice(at.device);
  if (error == cudaSuccess) {
    kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(at.stream)>>>(arguments...);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) return fail("CUDA kernel on device %d: %s", at.device, cudaGetErrorString(error));
#endif
  return 0;
}

// Elements of type T, `width` at a time.
template <class T, int N>
struct Access {
  using Element = T;
  static constexpr int width = N;
};

// Calls body(Access) with the storage type and 16 bytes at a time where that is possible, else element by element.
template <class Body>
static int32_t by_type(int32_t dtype, bool wide, const Body& body) {
  switch (dtype) {
    case INTERMOE_FLOAT32: return wide ? body(Access<float, 4>()) : body(Access<float, 1>());
    case INTERMOE_FLOAT16: return wide ? body(Access<Half, 8>()) : body(Access<Half, 1>());
    case INTERMOE_BFLOAT16: return wide ? body(Access<BFloat, 8>()) : body(Access<BFloat, 1>());
    default: return fail("unknown dtype code %d", dtype);
  }
}

static inline int64_t per_16_bytes(int32_t dtype) { return dtype == INTERMOE_FLOAT32 ? 4 : 8; }

#if defined(__CUDACC__) || defined(INTERMOE_EMULATED)

static __device__ __forceinline__ uint4 load16(const void* p) {
#ifdef INTERMOE_EMULATED
  return emulated_load16(p);
#else
  return *static_cast<const uint4*>(p);
#endif
}
static __device__ __forceinline__ void store16(void* p, uint4 words) {
#ifdef INTERMOE_EMULATED
  emulated_store16(p, words);
#else
  *static_cast<uint4*>(p) = words;
#endif
}

template <int N>
static __device__ __forceinline__ void load(const float* p, float (&out)[N]) {
  if constexpr (N == 1) {
    out[0] = p[0];
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const uint4 w = load16(p + i);
      out[i] = bits_to_float(w.x), out[i + 1] = bits_to_float(w.y);
      out[i + 2] = bits_to_float(w.z), out[i + 3] = bits_to_float(w.w);
    }
  }
}
template <class T, int N>
static __device__ __forceinline__ void load(const T* p, float (&out)[N]) {
  if constexpr (N == 1) {
    out[0] = widen(p[0]);
  } else {
    static_assert(N == 8);
    const uint4 w = load16(p);
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = widen(T{static_cast<uint16_t>(words[i] & 0xffff)});
      out[2 * i + 1] = widen(T{static_cast<uint16_t>(words[i] >> 16)});
    }
  }
}

template <int N>
static __device__ __forceinline__ void store(float* p, const float (&x)[N]) {
  if constexpr (N == 1) {
    p[0] = x[0];
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4)
      store16(p + i, uint4{float_to_bits(x[i]), float_to_bits(x[i + 1]), float_to_bits(x[i + 2]), float_to_bits(x[i + 3])});
  }
}
template <class T, int N>
static __device__ __forceinline__ void store(T* p, const float (&x)[N]) {
  if constexpr (N == 1) {
    narrow(x[0], p);
  } else {
    static_assert(N == 8);
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      T low, high;
      narrow(x[2 * i], &low);
      narrow(x[2 * i + 1], &high);
      words[i] = low.bits | static_cast<uint32_t>(high.bits) << 16;
    }
    store16(p, uint4{words[0], words[1], words[2], words[3]});
  }
}

// Sum over the lanes of a warp, the same bits in every lane.
static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return x;
}

// Sum over a block of kThreads, the same in every thread. Call it once: `parts` is not freed for another.
static __device__ __forceinline__ float block_sum(float x, float (&parts)[kThreads / kWarp]) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = parts[0];
#pragma unroll
  for (int i = 1; i < kThreads / kWarp; ++i) total += parts[i];
  return total;
}

#endif

}  // namespace intermoe
