// Step 1, route: LayerNorm statistics, modulated tokens and float32 logits in one pass over hidden, and its gradient.
#include <stdlib.h>

#include "route.h"
#include "vec.h"

namespace intermoe {

constexpr int64_t kRows = 256;  // tokens summed in registers' reach before joining the total, which keeps sums accurate

namespace INTERMOE_VARIANT {

// N dot products of one row with consecutive rows of weight (., D)
template <int N, class T>
static inline void dots(const T* row, const float* weight, int64_t D, float* out) {
  Vec total[N];
  for (int e = 0; e < N; ++e) total[e] = splat(0.0f);
  for (int64_t d = 0; d < D; d += kWidth) {
    const Vec x = load_at(row, d, D - d);
    for (int e = 0; e < N; ++e) total[e] = fma(x, load_at(weight + e * D, d, D - d), total[e]);
  }
  for (int e = 0; e < N; ++e) out[e] = sum(total[e]);
}

template <class T>
static void forward_rows(const RouteForward& a, int64_t first, int64_t last) {
  const int64_t D = a.D, E = a.E, per_row = a.R > 0 ? a.S / a.R : 1;
  for (int64_t s = first; s < last; ++s) {
    const T* row = (const T*)a.hidden + s * D;
    float* logits = a.logits + s * E;
    int64_t e = 0;
    for (; e + 8 <= E; e += 8) dots<8>(row, a.router_weight + e * D, D, logits + e);
    for (; e + 2 <= E; e += 2) dots<2>(row, a.router_weight + e * D, D, logits + e);
    for (; e < E; ++e) dots<1>(row, a.router_weight + e * D, D, logits + e);
    const int64_t r = s / per_row;
    if (a.router_offset != nullptr)
      for (e = 0; e < E; ++e) logits[e] += a.router_offset[r * E + e];
    if (a.tokens == nullptr) continue;

    Vec total = splat(0.0f);
    for (int64_t d = 0; d < D; d += kWidth) total = total + load_at(row, d, D - d);
    const float mean = sum(total) / static_cast<float>(D);
    const Vec center = splat(mean);
    total = splat(0.0f);
    Vec off = splat(0.0f);
    int64_t d = 0;
    for (; d + kWidth <= D; d += kWidth) {
      const Vec x = load(row + d) - center;
      total = fma(x, x, total);
      off = off + x;
    }
    float squares = sum(total), missed = sum(off);
    if (d < D) {
      float rest[kWidth];
      store(rest, load_part(row + d, D - d) - center);
      for (int64_t i = 0; i < D - d; ++i) squares += rest[i] * rest[i], missed += rest[i];
    }
    missed /= static_cast<float>(D);  // what a sum of large numbers left of the mean
    const float rstd = 1.0f / sqrtf(squares / static_cast<float>(D) - missed * missed + a.eps);
    a.mean[s] = mean + missed;
    a.rstd[s] = rstd;
    T* out = (T*)a.tokens + s * D;
    for (d = 0; d < D; d += kWidth) {
      Vec x = (load_at(row, d, D - d) - center - splat(missed)) * splat(rstd);
      if (a.scale != nullptr)
        x = modulate(x, load_at(a.scale + r * D, d, D - d), load_at(a.shift + r * D, d, D - d), splat(1.0f));
      store_at(out, d, D - d, x);
    }
  }
}

// grad_hidden of tokens first .. last
template <class T>
static void backward_rows(const RouteBackward& a, int64_t first, int64_t last) {
  const int64_t D = a.D, E = a.E, per_row = a.R > 0 ? a.S / a.R : 1;
  const Vec one = splat(1.0f);
  for (int64_t s = first; s < last; ++s) {
    const T *x = (const T*)a.hidden + s * D, *grad = (const T*)a.grad_tokens + s * D;
    const float* grad_logits = a.grad_logits + s * E;
    const float* scale = a.scale == nullptr ? nullptr : a.scale + (s / per_row) * D;
    T* out = (T*)a.grad_hidden + s * D;
    const bool normalised = a.mean != nullptr;
    const Vec center = splat(normalised ? a.mean[s] : 0.0f), rstd = splat(normalised ? a.rstd[s] : 1.0f);
    Vec plain = splat(0.0f), along = splat(0.0f);
    if (normalised) {
      // Lanes past D hold grad = 0, so whatever x - center is there does not count.
      for (int64_t d = 0; d < D; d += kWidth) {
        Vec g = load_at(grad, d, D - d);
        if (scale != nullptr) g = g * (one + load_at(scale, d, D - d));
        plain = plain + g;
        along = fma(g, (load_at(x, d, D - d) - center) * rstd, along);
      }
    }
    const Vec mean_plain = splat(sum(plain) / static_cast<float>(D));
    const Vec mean_along = splat(sum(along) / static_cast<float>(D));
    for (int64_t d = 0; d < D; d += kWidth) {
      Vec g = load_at(grad, d, D - d);
      if (normalised) {
        if (scale != nullptr) g = g * (one + load_at(scale, d, D - d));
        const Vec normal = (load_at(x, d, D - d) - center) * rstd;
        g = layer_norm_gradient(g, normal, rstd, mean_plain, mean_along);
      }
      for (int64_t e = 0; e < E; ++e)
        g = fma(splat(grad_logits[e]), load_at(a.router_weight + e * D, d, D - d), g);
      store_at(out, d, D - d, g);
    }
  }
}

// out (columns first .. last of one row) += sum of `partial`, which is emptied
static void flush(float* out, float* partial, int64_t first, int64_t last) {
  for (int64_t d = first; d < last; ++d) {
    out[d] += partial[d - first];
    partial[d - first] = 0.0f;
  }
}

// Sums over tokens for columns first .. last: every column is summed in the order of the tokens whatever the threads.
template <class T>
static void backward_columns(const RouteBackward& a, float* partial, int64_t first, int64_t last) {
  const int64_t D = a.D, E = a.E, rows = a.R > 0 ? a.R : 1, per_row = a.S / rows, width = last - first;
  float *partial_scale = partial + E * width, *partial_shift = partial_scale + width;
  memset(partial, 0, static_cast<size_t>((E + 2) * width) * sizeof(float));
  const int64_t weights = a.grad_router_weight == nullptr ? 0 : E;
  for (int64_t e = 0; e < weights; ++e) memset(a.grad_router_weight + e * D + first, 0, static_cast<size_t>(width) * 4);
  for (int64_t r = 0; r < rows; ++r) {
    if (a.grad_scale != nullptr) {
      memset(a.grad_scale + r * D + first, 0, static_cast<size_t>(width) * 4);
      memset(a.grad_shift + r * D + first, 0, static_cast<size_t>(width) * 4);
    }
    for (int64_t begin = r * per_row; begin < (r + 1) * per_row; begin += kRows) {
      const int64_t end = begin + kRows < (r + 1) * per_row ? begin + kRows : (r + 1) * per_row;
      for (int64_t s = begin; s < end; s += 4) {
        const int64_t count = end - s < 4 ? end - s : 4;
        const T* x[4];
        for (int64_t i = 0; i < 4; ++i) x[i] = (const T*)a.hidden + (s + (i < count ? i : 0)) * D + first;
        for (int64_t e = 0; e < weights; ++e) {
          Vec weight[4];
          for (int64_t i = 0; i < 4; ++i) weight[i] = splat(i < count ? a.grad_logits[(s + i) * E + e] : 0.0f);
          float* total = partial + e * width;
          for (int64_t d = 0; d < width; d += kWidth) {
            Vec t = load_at(total, d, width - d);
            for (int i = 0; i < 4; ++i)
              if (i < count) t = fma(weight[i], load_at(x[i], d, width - d), t);
            store_at(total, d, width - d, t);
          }
        }
        if (a.grad_scale == nullptr) continue;
        for (int64_t i = 0; i < count; ++i) {
          const T* grad = (const T*)a.grad_tokens + (s + i) * D + first;
          const Vec center = splat(a.mean[s + i]), rstd = splat(a.rstd[s + i]);
          for (int64_t d = 0; d < width; d += kWidth) {
            const Vec g = load_at(grad, d, width - d), normal = (load_at(x[i], d, width - d) - center) * rstd;
            store_at(partial_scale, d, width - d, fma(g, normal, load_at(partial_scale, d, width - d)));
            store_at(partial_shift, d, width - d, g + load_at(partial_shift, d, width - d));
          }
        }
      }
      for (int64_t e = 0; e < weights; ++e) flush(a.grad_router_weight + e * D, partial + e * width, first, last);
      if (a.grad_scale == nullptr) continue;
      flush(a.grad_scale + r * D, partial_scale, first, last);
      flush(a.grad_shift + r * D, partial_shift, first, last);
    }
  }
}

void route_forward(const RouteForward& a, int64_t first, int64_t last) {
  if (a.dtype == INTERMOE_FLOAT32) forward_rows<float>(a, first, last);
  if (a.dtype == INTERMOE_FLOAT16) forward_rows<Half>(a, first, last);
  if (a.dtype == INTERMOE_BFLOAT16) forward_rows<BFloat>(a, first, last);
}

void route_backward_rows(const RouteBackward& a, int64_t first, int64_t last) {
  if (a.dtype == INTERMOE_FLOAT32) backward_rows<float>(a, first, last);
  if (a.dtype == INTERMOE_FLOAT16) backward_rows<Half>(a, first, last);
  if (a.dtype == INTERMOE_BFLOAT16) backward_rows<BFloat>(a, first, last);
}

void route_backward_columns(const RouteBackward& a, float* partial, int64_t first, int64_t last) {
  if (a.dtype == INTERMOE_FLOAT32) backward_columns<float>(a, partial, first, last);
  if (a.dtype == INTERMOE_FLOAT16) backward_columns<Half>(a, partial, first, last);
  if (a.dtype == INTERMOE_BFLOAT16) backward_columns<BFloat>(a, partial, first, last);
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe

#ifdef INTERMOE_VARIANT_baseline

namespace intermoe {
INTERMOE_DECLARE(void route_forward(const RouteForward&, int64_t, int64_t))
INTERMOE_DECLARE(void route_backward_rows(const RouteBackward&, int64_t, int64_t))
INTERMOE_DECLARE(void route_backward_columns(const RouteBackward&, float*, int64_t, int64_t))

constexpr int64_t kColumns = 64;  // columns that a thread takes at a time: whole cache lines of every storage type
}  // namespace intermoe

using namespace intermoe;

extern "C" {

int32_t intermoe_route_forward_cpu(const void* hidden, const float* router_weight, const float* router_offset,
                                   const float* scale, const float* shift, void* tokens, float* logits, float* mean,
                                   float* rstd, int64_t S, int64_t D, int64_t E, int64_t R, float eps, int32_t dtype,
                                   int32_t num_threads) {
  const RouteForward arguments{hidden, router_weight, router_offset, scale, shift, tokens, logits, mean, rstd,
                               S,      D,             E,             R,     eps,   dtype};
  if (check_sizes(arguments) != 0) return 1;
  parallel_for(S, grain(D * (E + 4)), num_threads,
               [&](int64_t first, int64_t last) { INTERMOE_CALL(route_forward, arguments, first, last); });
  return 0;
}

int32_t intermoe_route_backward_cpu(const void* grad_tokens, const float* grad_logits, const void* hidden,
                                    const float* mean, const float* rstd, const float* router_weight,
                                    const float* scale, void* grad_hidden, float* grad_router_weight,
                                    float* grad_router_offset, float* grad_scale, float* grad_shift, int64_t S,
                                    int64_t D, int64_t E, int64_t R, int32_t dtype, int32_t num_threads) {
  const RouteBackward arguments{grad_tokens,        grad_logits, hidden,     mean, rstd, router_weight, scale, grad_hidden,
                                grad_router_weight, grad_router_offset, grad_scale, grad_shift, S, D, E, R, dtype};
  if (check_sizes(arguments) != 0) return 1;
  const bool sums = grad_router_weight != nullptr || grad_scale != nullptr;
  const int64_t groups = sums ? (D + kColumns - 1) / kColumns : 0;
  bool enough_memory = true;
  parallel_for(groups, grain(S * kColumns * (E + 4)), num_threads, [&](int64_t first, int64_t last) {
    const int64_t from = first * kColumns, to = last * kColumns < D ? last * kColumns : D;
    float* partial = static_cast<float*>(malloc(static_cast<size_t>((E + 2) * (to - from)) * sizeof(float)));
    if (partial == nullptr) {
#pragma omp atomic write
      enough_memory = false;
      return;
    }
    INTERMOE_CALL(route_backward_columns, arguments, partial, from, to);
    free(partial);
  });
  if (!enough_memory) return fail("out of memory");
  // After the sums, because grad_hidden may overwrite grad_tokens.
  parallel_for(S, grain(D * (E + 4)), num_threads,
               [&](int64_t first, int64_t last) { INTERMOE_CALL(route_backward_rows, arguments, first, last); });

  const int64_t rows = R > 0 ? R : 1, per_row = S / rows;
  parallel_for(rows, grain(per_row * E), num_threads, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t e = 0; e < E; ++e) {
        double total = 0.0;
        for (int64_t s = r * per_row; s < (r + 1) * per_row; ++s) total += grad_logits[s * E + e];
        grad_router_offset[r * E + e] = static_cast<float>(total);
      }
  });
  return 0;
}

}  // extern "C"

#endif
