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
  float* x;                  // (kBlockRows, wide_row(D))
  float* activation;         // (kBlockRows, wide_row(F))
  int64_t D, F;
  bool packed;  // the weights are each expert's panels, those of w_gate_up paired
  int32_t dtype;
};

// Floats between rows of the workspace: not a multiple of 4 KB, at which rows would push each other out of a cache
static inline int64_t wide_row(int64_t columns) { return columns + 16; }

constexpr int64_t kBlockRows = 1024;  // rows of the workspace: weights are packed once for so many
constexpr int64_t kPartRows = 336;    // rows of a part whose weights are packed: they stay in the second cache (AVX-512)

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
    float* to = a.x + (part.row + i) * wide_row(a.D);
    for (int64_t d = 0; d < a.D; d += kWidth) store_at(to, d, a.D - d, load_at(from, d, a.D - d));
  }
}

// Calls body(right, first, count, next, bytes) for a task: `count` panels of a part's expert from `first` on, and what
// the task after it reads where that is known.
template <class T, class Body>
static inline void each_group(const void* weights, const ExpertsForward& a, const Part& part, int64_t group, int64_t N,
                              int64_t K, bool paired, const Body& body) {
  const int64_t panels = num_panels(N, paired), size = K * kPanel, first = group * kGroup;
  const T* weight = (const T*)weights + part.expert * (a.packed ? panels * size : N * K);
  const int64_t left = panels - first, count = left < kGroup ? left : kGroup;
  const int64_t following = left - count < kGroup ? left - count : kGroup;
  const char* next = (const char*)(weight + (a.packed ? (first + count) * size : 0));
  body(Right<T>{weight, 1, K, K, N, paired, a.packed}, first, count, next, a.packed ? following * size * (int64_t)sizeof(T) : 0);
}

// Some columns of the activation of a part, and of both halves of its h
template <class T>
static void up_group(const ExpertsForward& a, const Part& part, int64_t group, float* room) {
  const int64_t D = a.D, F = a.F;
  each_group<T>(a.w_gate_up, a, part, group, 2 * F, D, true,
                [&](const Right<T>& right, int64_t first, int64_t count, const char* next, int64_t bytes) {
    const auto place = [&](int64_t i, int64_t j) {
      return a.activation + (part.row + i) * wide_row(F) + (first + j) * kWidth;
    };
    const auto body = [&](int64_t i, int64_t j, const float* sums) {
      const int64_t n = (first + j) * kWidth, left = F - n;
      const Vec g = load(sums), u = load(sums + kWidth);
      store_at(place(i, j), 0, left, swiglu(g, u).activation);
      if (a.h == nullptr) return;
      T* h = (T*)a.h + (part.first + i) * 2 * F + n;
      store_at(h, 0, left, g);
      store_at(h + F, 0, left, u);
    };
    multiply_group<false>(a.x + part.row * wide_row(D), wide_row(D), part.count, right.panels(first, count, room), count,
                          D, next, bytes, place, body);
  });
}

// Some columns of a part's expert_out
template <class T>
static void down_group(const ExpertsForward& a, const Part& part, int64_t group, float* room) {
  const int64_t D = a.D, F = a.F;
  each_group<T>(a.w_down, a, part, group, D, F, false,
                [&](const Right<T>& right, int64_t first, int64_t count, const char* next, int64_t bytes) {
    const auto place = [&](int64_t i, int64_t j) { return (T*)a.expert_out + (part.out + i) * D + (first + j) * kPanel; };
    const auto body = [&](int64_t i, int64_t j, const float* sums) {
      const int64_t n = (first + j) * kPanel;
      T* out = place(i, j);
      for (int64_t d = 0; d < kPanel && d < D - n; d += kWidth) store_at(out, d, D - n - d, load(sums + d));
    };
    multiply_group<false>(a.activation + part.row * wide_row(F), wide_row(F), part.count,
                          right.panels(first, count, room), count, F, next, bytes, place, body);
  });
}

// Tasks of a part, and floats that they need
int64_t experts_groups(int64_t N, bool paired) { return (num_panels(N, paired) + kGroup - 1) / kGroup; }
int64_t experts_room(int64_t K) { return kGroup * K * kPanel; }

// The phases of a block of parts: `first` .. `last` are rows of a part, or tasks, which go through the panels of every part.
void experts_gather(const ExpertsForward& a, const Part& part, int64_t first, int64_t last) {
  if (a.dtype == INTERMOE_FLOAT32) gather_wide<float>(a, part, first, last);
  if (a.dtype == INTERMOE_FLOAT16) gather_wide<Half>(a, part, first, last);
  if (a.dtype == INTERMOE_BFLOAT16) gather_wide<BFloat>(a, part, first, last);
}

void experts_up(const ExpertsForward& a, const Part* parts, float* room, int64_t first, int64_t last) {
  const int64_t groups = experts_groups(2 * a.F, true);
  for (int64_t task = first; task < last; ++task) {
    const Part& part = parts[task / groups];
    const int64_t group = task % groups;
    if (a.dtype == INTERMOE_FLOAT32) up_group<float>(a, part, group, room);
    if (a.dtype == INTERMOE_FLOAT16) up_group<Half>(a, part, group, room);
    if (a.dtype == INTERMOE_BFLOAT16) up_group<BFloat>(a, part, group, room);
  }
}

void experts_down(const ExpertsForward& a, const Part* parts, float* room, int64_t first, int64_t last) {
  const int64_t groups = experts_groups(a.D, false);
  for (int64_t task = first; task < last; ++task) {
    const Part& part = parts[task / groups];
    const int64_t group = task % groups;
    if (a.dtype == INTERMOE_FLOAT32) down_group<float>(a, part, group, room);
    if (a.dtype == INTERMOE_FLOAT16) down_group<Half>(a, part, group, room);
    if (a.dtype == INTERMOE_BFLOAT16) down_group<BFloat>(a, part, group, room);
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
INTERMOE_DECLARE(int64_t experts_groups(int64_t, bool))
INTERMOE_DECLARE(int64_t experts_room(int64_t))
INTERMOE_DECLARE(void experts_gather(const ExpertsForward&, const Part&, int64_t, int64_t))
INTERMOE_DECLARE(void experts_up(const ExpertsForward&, const Part*, float*, int64_t, int64_t))
INTERMOE_DECLARE(void experts_down(const ExpertsForward&, const Part*, float*, int64_t, int64_t))

static int64_t groups_of(int64_t N, bool paired) { return INTERMOE_CALL(experts_groups, N, paired); }
static int64_t room_for(int64_t K) { return INTERMOE_CALL(experts_room, K); }

// Runs one block of parts, at most kBlockRows rows in all. Returns whether there was memory for the panels.
static bool run_block(const ExpertsForward& a, const Part* parts, int64_t num_parts, int32_t num_threads) {
  const int64_t D = a.D, F = a.F;
  int64_t rows = 0;
  for (int64_t i = 0; i < num_parts; ++i) {
    rows += parts[i].count;
    parallel_for(parts[i].count, grain(D), num_threads,
                 [&](int64_t first, int64_t last) { INTERMOE_CALL(experts_gather, a, parts[i], first, last); });
  }
  bool enough_memory = true;
  const auto phase = [&](int64_t groups, int64_t columns, int64_t depth, bool up) {
    parallel_for(groups * num_parts, grain(rows * columns / 8 * depth / (groups * num_parts)), num_threads,
                 [&](int64_t first, int64_t last) {
      Room room(a.packed && a.dtype == INTERMOE_FLOAT32 ? 0 : room_for(depth));
      if (room.start == nullptr) {
#pragma omp atomic write
        enough_memory = false;
      } else if (up) {
        INTERMOE_CALL(experts_up, a, parts, room.start, first, last);
      } else {
        INTERMOE_CALL(experts_down, a, parts, room.start, first, last);
      }
    });
  };
  phase(groups_of(2 * F, true), 2 * F, D, true);
  phase(groups_of(D, false), D, F, false);
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
  return (P < kBlockRows ? P : kBlockRows) * (wide_row(D) + wide_row(F));
}

int32_t intermoe_experts_forward_cpu(const void* tokens, const int64_t* token_idx, const int64_t* ranges,
                                     const void* w_gate_up, const void* w_down, void* h, void* expert_out,
                                     float* scratch, int64_t P, int64_t S, int64_t D, int64_t E, int64_t F,
                                     int32_t packed, int32_t dtype, int32_t num_threads) {
  if (!known_dtype(dtype) || P < 0 || S < 0 || D < 1 || E < 1 || F < 1)
    return fail("sizes do not fit: P=%lld S=%lld D=%lld E=%lld F=%lld dtype=%d", (long long)P, (long long)S, (long long)D,
                (long long)E, (long long)F, dtype);
  constexpr int64_t kParts = 64;
  Part parts[kParts];
  int64_t num_parts = 0, row = 0, out = 0;
  const bool cached = packed != 0 && instruction_set() == InstructionSet::avx512;
  const int64_t room = P < kBlockRows ? P : kBlockRows;
  const ExpertsForward a{tokens, token_idx,  w_gate_up, w_down, h, expert_out,
                         scratch, scratch + room * wide_row(D), D, F, packed != 0, dtype};
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
      const int64_t left = stop - first, pieces = cached ? (left + kPartRows - 1) / kPartRows : 1;
      const int64_t most = (left + pieces - 1) / pieces, count = most < room - row ? most : room - row;
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
