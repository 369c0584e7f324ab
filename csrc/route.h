// Arguments of route and its gradient, which the CPU and CUDA share.
#pragma once

#include "common.h"

namespace intermoe {

struct RouteForward {
  const void* hidden;          // (S, D) T
  const float* router_weight;  // (E, D)
  const float* router_offset;  // (R, E) or NULL
  const float* scale;          // (R, D) or NULL
  const float* shift;          // (R, D) or NULL
  void* tokens;                // (S, D) T or NULL: do not normalise
  float* logits;               // (S, E)
  float *mean, *rstd;          // (S,)
  int64_t S, D, E, R;
  float eps;
  int32_t dtype;
};

struct RouteBackward {
  const void* grad_tokens;         // (S, D) T
  const float* grad_logits;        // (S, E)
  const void* hidden;              // (S, D) T
  const float *mean, *rstd;        // (S,) or NULL: tokens are hidden itself
  const float* router_weight;      // (E, D)
  const float* scale;              // (R, D) or NULL
  void* grad_hidden;               // (S, D) T
  float* grad_router_weight;       // (E, D)
  float* grad_router_offset;       // (R, E)
  float *grad_scale, *grad_shift;  // (R, D), or both NULL
  int64_t S, D, E, R;
  int32_t dtype;
};

// Returns 0 if the sizes fit together.
template <class Arguments>
static inline int32_t check_sizes(const Arguments& a) {
  if (a.S >= 0 && a.D >= 1 && a.E >= 1 && a.R >= 0 && (a.R == 0 || a.S % a.R == 0) && known_dtype(a.dtype)) return 0;
  return fail("sizes do not fit: S=%lld D=%lld E=%lld R=%lld dtype=%d", (long long)a.S, (long long)a.D, (long long)a.E,
              (long long)a.R, a.dtype);
}

}  // namespace intermoe
