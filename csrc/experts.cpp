// Step 3, experts: what surrounds the matrix products, rows gathered by token, SwiGLU and its gradient in one pass; and the
// whole forward with products of its own.
#include <stdlib.h>

#include "product.h"

namespace intermoe {

// Consecutive pairs of one expert: `first` is a pair, `row` its place in the workspace, `out` its row of expert_out.
struct Part {
  int64_t expert, first, row, out, count;
};

struct ExpertsForward {
  const void* tokens;        // (S, D) T
  const int64_t* token_idx;  // (P,)
  const void* w_gate_up;     // (E, 2F, D) T
  const void* w_down;        // (E, D, F) T
  void* h;                   // (P, 2F) T or NULL
  void* expert_out;          // (., D) T
  float* x;                  // (kBlockRows, D)
  float* activation;         // (kBlockRows, F)
  int64_t D, F;
  int32_t dtype;
};

constexpr int64_t kBlockRows = 1024;  // rows of the workspace: weights are packed once for so many

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

template <class T>
static void gather_wide(const ExpertsForward& a, const Part& part, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const T* from = (const T*)a.tokens + a.token_idx[part.first + i] * a.D;
    float* to = a.x + (part.row + i) * a.D;
    for (int64_t d = 0; d < a.D; d += kWidth) store_at(to, d, a.D - d, load_at(from, d, a.D - d));
  }
}

// Columns n .. n + kPanel of the activation of a part, and of both halves of its h
template <class T>
static void up_panel(const ExpertsForward& a, const Part& part, int64_t n, float* panels) {
  const int64_t D = a.D, F = a.F, left = F - n;
  const T* weight = (const T*)a.w_gate_up + (part.expert * 2 * F + n) * D;
  float *gate_panel = panels, *up_panel = panels + D * kPanel;
  pack(weight, left, D, gate_panel);
  pack(weight + F * D, left, D, up_panel);
  float gate[kTile * kPanel], up[kTile * kPanel];
  for (int64_t first = 0; first < part.count; first += kTile) {
    const int64_t rows = part.count - first < kTile ? part.count - first : kTile;
    const float* x = a.x + (part.row + first) * D;
    multiply(x, gate_panel, rows, D, gate);
    multiply(x, up_panel, rows, D, up);
    for (int64_t i = 0; i < rows; ++i) {
      float* out = a.activation + (part.row + first + i) * F + n;
      T* h = a.h == nullptr ? nullptr : (T*)a.h + (part.first + first + i) * 2 * F + n;
      for (int64_t d = 0; d < kPanel && d < left; d += kWidth) {
        const Vec g = load(gate + i * kPanel + d), u = load(up + i * kPanel + d);
        store_at(out, d, left - d, swiglu(g, u).activation);
        if (h == nullptr) continue;
        store_at(h, d, left - d, g);
        store_at(h + F, d, left - d, u);
      }
    }
  }
}

// Columns n .. n + kPanel of a part's expert_out
template <class T>
static void down_panel(const ExpertsForward& a, const Part& part, int64_t n, float* panel) {
  const int64_t D = a.D, F = a.F, left = D - n;
  pack((const T*)a.w_down + (part.expert * D + n) * F, left, F, panel);
  float sums[kTile * kPanel];
  for (int64_t first = 0; first < part.count; first += kTile) {
    const int64_t rows = part.count - first < kTile ? part.count - first : kTile;
    multiply(a.activation + (part.row + first) * F, panel, rows, F, sums);
    for (int64_t i = 0; i < rows; ++i) {
      T* out = (T*)a.expert_out + (part.out + first + i) * D + n;
      for (int64_t d = 0; d < kPanel && d < left; d += kWidth)
        store_at(out, d, left - d, load(sums + i * kPanel + d));
    }
  }
}

int64_t panel_columns() { return kPanel; }

// The phases of a block of parts: `first` .. `last` are rows of a part, or tasks, which go through the parts of every panel.
void experts_gather(const ExpertsForward& a, const Part& part, int64_t first, int64_t last) {
  if (a.dtype == INTERMOE_FLOAT32) gather_wide<float>(a, part, first, last);
  if (a.dtype == INTERMOE_FLOAT16) gather_wide<Half>(a, part, first, last);
  if (a.dtype == INTERMOE_BFLOAT16) gather_wide<BFloat>(a, part, first, last);
}

void experts_up(const ExpertsForward& a, const Part* parts, int64_t num_parts, float* panels, int64_t first,
                int64_t last) {
  for (int64_t task = first; task < last; ++task) {
    const Part& part = parts[task % num_parts];
    const int64_t n = task / num_parts * kPanel;
    if (a.dtype == INTERMOE_FLOAT32) up_panel<float>(a, part, n, panels);
    if (a.dtype == INTERMOE_FLOAT16) up_panel<Half>(a, part, n, panels);
    if (a.dtype == INTERMOE_BFLOAT16) up_panel<BFloat>(a, part, n, panels);
  }
}

void experts_down(const ExpertsForward& a, const Part* parts, int64_t num_parts, float* panels, int64_t first,
                  int64_t last) {
  for (int64_t task = first; task < last; ++task) {
    const Part& part = parts[task % num_parts];
    const int64_t n = task / num_parts * kPanel;
    if (a.dtype == INTERMOE_FLOAT32) down_panel<float>(a, part, n, panels);
    if (a.dtype == INTERMOE_FLOAT16) down_panel<Half>(a, part, n, panels);
    if (a.dtype == INTERMOE_BFLOAT16) down_panel<BFloat>(a, part, n, panels);
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
INTERMOE_DECLARE(int64_t panel_columns())
INTERMOE_DECLARE(void experts_gather(const ExpertsForward&, const Part&, int64_t, int64_t))
INTERMOE_DECLARE(void experts_up(const ExpertsForward&, const Part*, int64_t, float*, int64_t, int64_t))
INTERMOE_DECLARE(void experts_down(const ExpertsForward&, const Part*, int64_t, float*, int64_t, int64_t))

static int64_t panel_width() { return INTERMOE_CALL(panel_columns); }

// Runs one block of parts, at most kBlockRows rows in all. Returns whether there was memory for the panels.
static bool run_block(const ExpertsForward& a, const Part* parts, int64_t num_parts, int32_t num_threads) {
  const int64_t D = a.D, F = a.F, panel = panel_width();
  int64_t rows = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    rows += parts[i].count;
    parallel_for(parts[i].count, grain(D), num_threads,
                 [&](int64_t first, int64_t last) { INTERMOE_CALL(experts_gather, a, parts[i], first, last); });
  }
  bool enough_memory = true;
  const auto phase = [&](int64_t columns, int64_t depth, bool up) {
    const int64_t tasks = (columns + panel - 1) / panel * num_parts;
    const int64_t operations = (rows / num_parts + 1) * panel * depth / 8;
    parallel_for(tasks, grain(operations), num_threads, [&](int64_t first, int64_t last) {
      float* panels = static_cast<float*>(malloc(static_cast<size_t>((up ? 2 : 1) * panel * depth) * sizeof(float)));
      if (panels == nullptr) {
#pragma omp atomic write
        enough_memory = false;
        return;
      }
      if (up) {
        INTERMOE_CALL(experts_up, a, parts, num_parts, panels, first, last);
      } else {
        INTERMOE_CALL(experts_down, a, parts, num_parts, panels, first, last);
      }
      free(panels);
    });
  };
  phase(F, D, true);
  phase(D, F, false);
  return enough_memory;
}
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

int64_t intermoe_experts_scratch(int64_t P, int64_t D, int64_t F) {
  return (P < kBlockRows ? P : kBlockRows) * (D + F);
}

int32_t intermoe_experts_forward_cpu(const void* tokens, const int64_t* token_idx, const int64_t* ranges,
                                     const void* w_gate_up, const void* w_down, void* h, void* expert_out,
                                     float* scratch, int64_t P, int64_t S, int64_t D, int64_t E, int64_t F,
                                     int32_t dtype, int32_t num_threads) {
  if (!known_dtype(dtype) || P < 0 || S < 0 || D < 1 || E < 1 || F < 1)
    return fail("sizes do not fit: P=%lld S=%lld D=%lld E=%lld F=%lld dtype=%d", (long long)P, (long long)S, (long long)D,
                (long long)E, (long long)F, dtype);
  constexpr int64_t kParts = 64;
  Part parts[kParts];
  int64_t num_parts = 0, row = 0, out = 0;
  const int64_t room = P < kBlockRows ? P : kBlockRows;
  const ExpertsForward a{tokens, token_idx,  w_gate_up, w_down, h, expert_out,
                         scratch, scratch + room * D, D, F, dtype};
  for (int64_t e = 0; e < E; ++e) {
    const int64_t start = ranges[2 * e], stop = ranges[2 * e + 1];
    if (start < 0 || stop < start || stop > P)
      return fail("pairs %lld .. %lld of expert %lld are not within the %lld pairs", (long long)start, (long long)stop,
                  (long long)e, (long long)P);
    for (int64_t p = start; p < stop; ++p)
      if (token_idx[p] < 0 || token_idx[p] >= S)
        return fail("token_idx[%lld] = %lld is outside 0 .. %lld", (long long)p, (long long)token_idx[p], (long long)S);
    for (int64_t first = start; first < stop;) {
      if (num_parts == kParts || row == room) {
        if (!run_block(a, parts, num_parts, num_threads)) return fail("out of memory");
        num_parts = row = 0;
      }
      const int64_t count = stop - first < room - row ? stop - first : room - row;
      parts[num_parts++] = Part{e, first, row, out, count};
      first += count, row += count, out += count;
    }
  }
  if (num_parts > 0 && !run_block(a, parts, num_parts, num_threads)) return fail("out of memory");
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
