// Step 4, combine, on CUDA: a block per token, which sums its pairs through slots, in float32 and in expert order.
#include "device.h"

namespace intermoe {

// expert_out (., D) T, gates (P,) or NULL, slots (S, E), shift (E,) or NULL -> out (S, D) T
template <class T, int N>
static __global__ void combine_kernel(const T* expert_out, const float* gates, const int64_t* slots,
                                      const int64_t* shift, T* out, int64_t P, int64_t D, int64_t E) {
  const int64_t s = blockIdx.x;
  const int64_t* row = slots + s * E;
  for (int64_t d = static_cast<int64_t>(threadIdx.x) * N; d < D; d += kThreads * N) {
    float total[N] = {}, part[N];
    for (int64_t e = 0; e < E; ++e) {
      const int64_t pair = row[e];
      if (pair < 0) continue;
      if (pair >= P) {  // the host cannot refuse it without waiting: no access, and a result that shows it
        for (int i = 0; i < N; ++i) total[i] = bits_to_float(0x7fc00000);
        continue;
      }
      const float weight = gates == nullptr ? 1.0f : gates[pair];
      load(expert_out + (shift == nullptr ? pair : pair - shift[e]) * D + d, part);
#pragma unroll
      for (int i = 0; i < N; ++i) total[i] = fma(weight, part[i], total[i]);
    }
    store(out + s * D + d, total);
  }
}

}  // namespace intermoe

using namespace intermoe;

extern "C" int32_t intermoe_combine_cuda(const void* expert_out, const float* gates, const int64_t* slots,
                                         const int64_t* shift, void* out, int64_t P, int64_t S, int64_t D, int64_t E,
                                         int32_t dtype, int32_t device, void* stream) {
  const bool wide = D % per_16_bytes(dtype) == 0 && aligned({expert_out, out});
  return by_type(dtype, wide, [&](auto access) {
    using A = decltype(access);
    using T = typename A::Element;
    return launch({device, stream}, combine_kernel<T, A::width>, {S}, kThreads, static_cast<const T*>(expert_out), gates,
                  slots, shift, static_cast<T*>(out), P, D, E);
  });
}
