// Step 4, combine: every token sums its pairs through slots, in float32 and in expert order. No atomics, deterministic.
#include "vec.h"

namespace intermoe {
namespace INTERMOE_VARIANT {

// expert_out (., D) T, gates (P,) or NULL, slots (S, E), shift (E,) or NULL -> out (S, D) T
template <class T>
static void combine_rows(const T* expert_out, const float* gates, const int64_t* slots, const int64_t* shift, T* out,
                         int64_t D, int64_t E, int64_t first, int64_t last) {
  for (int64_t s = first; s < last; ++s) {
    const int64_t* row = slots + s * E;
    for (int64_t d = 0; d < D; d += kWidth) {
      Vec total = splat(0.0f);
      for (int64_t e = 0; e < E; ++e) {
        if (row[e] < 0) continue;
        const int64_t from = shift == nullptr ? row[e] : row[e] - shift[e];
        const Vec part = load_at(expert_out + from * D, d, D - d);
        total = gates == nullptr ? total + part : fma(splat(gates[row[e]]), part, total);
      }
      store_at(out + s * D, d, D - d, total);
    }
  }
}

void combine(const void* expert_out, const float* gates, const int64_t* slots, const int64_t* shift, void* out,
             int64_t D, int64_t E, int32_t dtype, int64_t first, int64_t last) {
  if (dtype == INTERMOE_FLOAT32)
    combine_rows((const float*)expert_out, gates, slots, shift, (float*)out, D, E, first, last);
  if (dtype == INTERMOE_FLOAT16)
    combine_rows((const Half*)expert_out, gates, slots, shift, (Half*)out, D, E, first, last);
  if (dtype == INTERMOE_BFLOAT16)
    combine_rows((const BFloat*)expert_out, gates, slots, shift, (BFloat*)out, D, E, first, last);
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe

#ifdef INTERMOE_VARIANT_baseline

namespace intermoe {
INTERMOE_DECLARE(void combine(const void*, const float*, const int64_t*, const int64_t*, void*, int64_t, int64_t, int32_t,
                              int64_t, int64_t))
}  // namespace intermoe

using namespace intermoe;

extern "C" int32_t intermoe_combine_cpu(const void* expert_out, const float* gates, const int64_t* slots,
                                        const int64_t* shift, void* out, int64_t P, int64_t S, int64_t D, int64_t E,
                                        int32_t dtype, int32_t num_threads) {
  if (!known_dtype(dtype)) return fail("unknown dtype code %d", dtype);
  if (const int64_t* bad = first_outside(slots, S * E, P))
    return fail("slots holds %lld, but there are %lld pairs", (long long)*bad, (long long)P);
  parallel_for(S, grain(4 * D), num_threads, [&](int64_t first, int64_t last) {
    INTERMOE_CALL(combine, expert_out, gates, slots, shift, out, D, E, dtype, first, last);
  });
  return 0;
}

#endif
