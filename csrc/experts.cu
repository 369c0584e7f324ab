// Step 3, experts, on CUDA: what surrounds the matrix products. A block per row.
#include "device.h"

namespace intermoe {

template <class Unit>
static __device__ __forceinline__ Unit ones();
template <>
__device__ __forceinline__ uint4 ones() {
  return {~0u, ~0u, ~0u, ~0u};
}
template <>
__device__ __forceinline__ uint16_t ones() {
  return 0xffff;
}

// out[i, :] = source[rows[i], :] in units of 16 or 2 bytes; all bits of a row outside are set: a NaN in every type
template <class Unit>
static __global__ void gather_kernel(const Unit* source, const int64_t* rows, int64_t num_rows, int64_t units,
                                     Unit* out) {
  const int64_t i = blockIdx.x, row = rows[i];
  const bool inside = row >= 0 && row < num_rows;
  for (int64_t u = threadIdx.x; u < units; u += kThreads)
    out[i * units + u] = inside ? source[row * units + u] : ones<Unit>();
}

// h (P, 2F): gate | up -> activation (P, F) = silu(gate) * up
template <class T, int N>
static __global__ void swiglu_forward_kernel(const T* h, T* activation, int64_t F) {
  const int64_t row = blockIdx.x;
  const T *gate = h + row * 2 * F, *up = gate + F;
  for (int64_t f = static_cast<int64_t>(threadIdx.x) * N; f < F; f += kThreads * N) {
    float g[N], u[N];
    load(gate + f, g);
    load(up + f, u);
#pragma unroll
    for (int i = 0; i < N; ++i) g[i] = swiglu(g[i], u[i]).activation;
    store(activation + row * F + f, g);
  }
}

// inner (P, F): in dO . W_down, out gates * activation;  grad_h (P, 2F), may be h;  grad_gates (P,) = sum_f dO.W_down * a
template <class T, int N>
static __global__ void swiglu_backward_kernel(const T* h, const float* gates, T* inner, T* grad_h, float* grad_gates,
                                              int64_t F) {
  __shared__ float parts[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const T *gate = h + row * 2 * F, *up = gate + F;
  T *in = inner + row * F, *grad_gate = grad_h + row * 2 * F, *grad_up = grad_gate + F;
  const float weight = gates[row];
  float total = 0.0f;
  for (int64_t f = static_cast<int64_t>(threadIdx.x) * N; f < F; f += kThreads * N) {
    float g[N], u[N], raw[N];
    load(gate + f, g);
    load(up + f, u);
    load(in + f, raw);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Swiglu<float> s = swiglu(g[i], u[i]);
      total = fma(raw[i], s.activation, total);
      g[i] = weight * raw[i] * swiglu_slope(s, u[i], 1.0f);
      u[i] = weight * raw[i] * s.silu;
      raw[i] = weight * s.activation;
    }
    store(in + f, raw);
    store(grad_gate + f, g);
    store(grad_up + f, u);
  }
  total = block_sum(total, parts);
  if (threadIdx.x == 0) grad_gates[row] = total;
}

}  // namespace intermoe

using namespace intermoe;

extern "C" {

int32_t intermoe_gather_cuda(const void* source, const int64_t* rows, int64_t count, int64_t num_rows,
                             int64_t row_bytes, void* out, int32_t device, void* stream) {
  if (row_bytes % 2 != 0) return fail("expected rows of whole elements, got %lld bytes", (long long)row_bytes);
  const Place at{device, stream};
  if (row_bytes % 16 == 0 && aligned({source, out}))
    return launch(at, gather_kernel<uint4>, {count}, kThreads, static_cast<const uint4*>(source), rows, num_rows,
                  row_bytes / 16, static_cast<uint4*>(out));
  return launch(at, gather_kernel<uint16_t>, {count}, kThreads, static_cast<const uint16_t*>(source), rows, num_rows,
                row_bytes / 2, static_cast<uint16_t*>(out));
}

int32_t intermoe_swiglu_forward_cuda(const void* h, void* activation, int64_t P, int64_t F, int32_t dtype,
                                     int32_t device, void* stream) {
  const bool wide = F % per_16_bytes(dtype) == 0 && aligned({h, activation});
  return by_type(dtype, wide, [&](auto access) {
    using A = decltype(access);
    using T = typename A::Element;
    return launch({device, stream}, swiglu_forward_kernel<T, A::width>, {P}, kThreads, static_cast<const T*>(h),
                  static_cast<T*>(activation), F);
  });
}

int32_t intermoe_swiglu_backward_cuda(const void* h, const float* gates, void* inner, void* grad_h, float* grad_gates,
                                      int64_t P, int64_t F, int32_t dtype, int32_t device, void* stream) {
  const bool wide = F % per_16_bytes(dtype) == 0 && aligned({h, inner, grad_h});
  return by_type(dtype, wide, [&](auto access) {
    using A = decltype(access);
    using T = typename A::Element;
    return launch({device, stream}, swiglu_backward_kernel<T, A::width>, {P}, kThreads, static_cast<const T*>(h), gates,
                  static_cast<T*>(inner), static_cast<T*>(grad_h), grad_gates, F);
  });
}

}  // extern "C"
