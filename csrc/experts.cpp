// Step 3, experts: what surrounds the matrix products. Rows are gathered by token, SwiGLU and its gradient are one pass.
#include "vec.h"

namespace intermoe {
namespace INTERMOE_VARIANT {

// h (rows, 2F): gate | up -> activation (rows, F) = silu(gate) * up
template <class T>
static void forward_rows(const T* h, T* activation, int64_t F, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T *gate = h + row * 2 * F, *up = gate + F;
    T* out = activation + row * F;
    for (int64_t f = 0; f < F; f += kWidth) {
      const Vec g = load_at(gate, f, F - f);
      store_at(out, f, F - f, swiglu(g, load_at(up, f, F - f)).activation);
    }
  }
}

// inner (rows, F): in dO . W_down, out gates * activation;  grad_h (rows, 2F);  grad_gates (rows,) = sum_f dO.W_down * a
template <class T>
static void backward_rows(const T* h, const float* gates, T* inner, T* grad_h, float* grad_gates, int64_t F,
                          int64_t first, int64_t last) {
  const Vec one = splat(1.0f);
  for (int64_t row = first; row < last; ++row) {
    const T *gate = h + row * 2 * F, *up = gate + F;
    T *in = inner + row * F, *grad_gate = grad_h + row * 2 * F, *grad_up = grad_gate + F;
    const Vec weight = splat(gates[row]);
    Vec total = splat(0.0f);
    for (int64_t f = 0; f < F; f += kWidth) {
      const int64_t n = F - f;
      const Vec g = load_at(gate, f, n), u = load_at(up, f, n), raw = load_at(in, f, n);
      const Swiglu<Vec> s = swiglu(g, u);
      total = fma(raw, s.activation, total);
      store_at(in, f, n, weight * s.activation);
      store_at(grad_up, f, n, weight * raw * s.silu);
      store_at(grad_gate, f, n, weight * raw * swiglu_slope(s, u, one));
    }
    grad_gates[row] = sum(total);
  }
}

void swiglu_forward(const void* h, void* activation, int64_t F, int32_t dtype, int64_t first, int64_t last) {
  if (dtype == INTERMOE_FLOAT32) forward_rows((const float*)h, (float*)activation, F, first, last);
  if (dtype == INTERMOE_FLOAT16) forward_rows((const Half*)h, (Half*)activation, F, first, last);
  if (dtype == INTERMOE_BFLOAT16) forward_rows((const BFloat*)h, (BFloat*)activation, F, first, last);
}

void swiglu_backward(const void* h, const float* gates, void* inner, void* grad_h, float* grad_gates, int64_t F,
                     int32_t dtype, int64_t first, int64_t last) {
  if (dtype == INTERMOE_FLOAT32)
    backward_rows((const float*)h, gates, (float*)inner, (float*)grad_h, grad_gates, F, first, last);
  if (dtype == INTERMOE_FLOAT16)
    backward_rows((const Half*)h, gates, (Half*)inner, (Half*)grad_h, grad_gates, F, first, last);
  if (dtype == INTERMOE_BFLOAT16)
    backward_rows((const BFloat*)h, gates, (BFloat*)inner, (BFloat*)grad_h, grad_gates, F, first, last);
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe

#ifdef INTERMOE_VARIANT_baseline

namespace intermoe {
INTERMOE_DECLARE(void swiglu_forward(const void*, void*, int64_t, int32_t, int64_t, int64_t))
INTERMOE_DECLARE(void swiglu_backward(const void*, const float*, void*, void*, float*, int64_t, int32_t, int64_t,
                                      int64_t))
}  // namespace intermoe

using namespace intermoe;

extern "C" {

int32_t intermoe_gather_cpu(const void* source, const int64_t* rows, int64_t count, int64_t num_rows, int64_t row_bytes,
                            void* out, int32_t num_threads) {
  if (count < 0 || row_bytes < 0) return fail("expected sizes >= 0, got %lld rows", (long long)count);
  for (int64_t i = 0; i < count; ++i)
    if (rows[i] < 0 || rows[i] >= num_rows)
      return fail("token_idx[%lld] = %lld is outside 0 .. %lld", (long long)i, (long long)rows[i], (long long)num_rows);
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(out);
  parallel_for(count, grain(row_bytes), num_threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      memcpy(to + i * row_bytes, from + rows[i] * row_bytes, static_cast<size_t>(row_bytes));
  });
  return 0;
}

int32_t intermoe_swiglu_forward_cpu(const void* h, void* activation, int64_t P, int64_t F, int32_t dtype,
                                    int32_t num_threads) {
  if (!known_dtype(dtype) || P < 0 || F < 0) return fail("bad dtype %d or size %lld x %lld", dtype, (long long)P, (long long)F);
  parallel_for(P, grain(4 * F), num_threads, [&](int64_t first, int64_t last) {
    INTERMOE_CALL(swiglu_forward, h, activation, F, dtype, first, last);
  });
  return 0;
}

int32_t intermoe_swiglu_backward_cpu(const void* h, const float* gates, void* inner, void* grad_h, float* grad_gates,
                                     int64_t P, int64_t F, int32_t dtype, int32_t num_threads) {
  if (!known_dtype(dtype) || P < 0 || F < 0) return fail("bad dtype %d or size %lld x %lld", dtype, (long long)P, (long long)F);
  parallel_for(P, grain(8 * F), num_threads, [&](int64_t first, int64_t last) {
    INTERMOE_CALL(swiglu_backward, h, gates, inner, grad_h, grad_gates, F, dtype, first, last);
  });
  return 0;
}

}  // extern "C"

#endif
