// Step 2, select: which experts take which token, without sort or atomics. Counts per block of tokens and expert, an
// exclusive scan in (expert, block) order, then a stable scatter: pairs come out ordered by expert, then token.
#include "common.h"
#include "formulas.h"

namespace intermoe {

static inline int64_t num_blocks(int64_t S) { return (S + kSelectBlock - 1) / kSelectBlock; }

namespace INTERMOE_VARIANT {

// logits (S, E), bias (E,) or NULL, valid (S, V) or NULL -> slots (S, E) of 1 or -1, block_counts (num_blocks, E)
void select_mark(const float* logits, const float* bias, const uint8_t* valid, int64_t S, int64_t E, int64_t V,
                 int64_t* slots, int64_t* block_counts, int64_t block) {
  const int64_t first = block * kSelectBlock, last = first + kSelectBlock < S ? first + kSelectBlock : S;
  int64_t* counts = block_counts + block * E;
  for (int64_t e = 0; e < E; ++e) counts[e] = 0;
  for (int64_t s = first; s < last; ++s) {
    for (int64_t e = 0; e < E; ++e) {
      const bool open = valid == nullptr || valid[s * V + (V == 1 ? 0 : e)] != 0;
      const bool selected = open && (bias == nullptr || selects(logits[s * E + e], bias[e]));
      slots[s * E + e] = selected ? 1 : -1;
      counts[e] += selected;
    }
  }
}

// position (num_blocks, E): first pair of that block and expert, moved past its last one
void select_scatter(const float* logits, int64_t S, int64_t E, int64_t* slots, int64_t* token_idx, float* gates,
                    int64_t* positions, int64_t block) {
  const int64_t first = block * kSelectBlock, last = first + kSelectBlock < S ? first + kSelectBlock : S;
  int64_t* position = positions + block * E;
  for (int64_t s = first; s < last; ++s) {
    const float* row = logits + s * E;
    float top = row[0], sum = 0.0f;
    for (int64_t e = 1; e < E; ++e) top = row[e] > top ? row[e] : top;
    for (int64_t e = 0; e < E; ++e) sum += expf(row[e] - top);
    for (int64_t e = 0; e < E; ++e) {
      if (slots[s * E + e] < 0) continue;
      const int64_t pair = position[e]++;
      slots[s * E + e] = pair;
      token_idx[pair] = s;
      gates[pair] = expf(row[e] - top) / sum;
    }
  }
}

// grad_logits[s, e] = p_e * (G_e - sum_i p_i G_i), p = softmax(logits[s, :]), G_e = grad_gates[slots[s, e]] or 0
void select_backward(const float* grad_gates, const float* logits, const int64_t* slots, int64_t E, float* grad_logits,
                     int64_t first, int64_t last) {
  for (int64_t s = first; s < last; ++s) {
    const float* row = logits + s * E;
    const int64_t* pairs = slots + s * E;
    float* out = grad_logits + s * E;
    bool taken = false;
    for (int64_t e = 0; e < E; ++e) taken = taken || pairs[e] >= 0;
    if (!taken) {
      for (int64_t e = 0; e < E; ++e) out[e] = 0.0f;
      continue;
    }
    float top = row[0], sum = 0.0f, mean = 0.0f;
    for (int64_t e = 1; e < E; ++e) top = row[e] > top ? row[e] : top;
    for (int64_t e = 0; e < E; ++e) {
      out[e] = expf(row[e] - top);
      sum += out[e];
      if (pairs[e] >= 0) mean += out[e] * grad_gates[pairs[e]];
    }
    mean /= sum;
    for (int64_t e = 0; e < E; ++e) out[e] = out[e] / sum * ((pairs[e] >= 0 ? grad_gates[pairs[e]] : 0.0f) - mean);
  }
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe

#ifdef INTERMOE_VARIANT_baseline

namespace intermoe {
INTERMOE_DECLARE(void select_mark(const float*, const float*, const uint8_t*, int64_t, int64_t, int64_t, int64_t*,
                                  int64_t*, int64_t))
INTERMOE_DECLARE(void select_scatter(const float*, int64_t, int64_t, int64_t*, int64_t*, float*, int64_t*, int64_t))
INTERMOE_DECLARE(void select_backward(const float*, const float*, const int64_t*, int64_t, float*, int64_t, int64_t))
}  // namespace intermoe

using namespace intermoe;

extern "C" {

int64_t intermoe_select_scratch(int64_t S) { return num_blocks(S); }

int32_t intermoe_select_count_cpu(const float* logits, const float* bias, const uint8_t* valid, int64_t S, int64_t E,
                                  int64_t V, int64_t* slots, int64_t* counts, int64_t* offsets, int64_t* scratch,
                                  int32_t num_threads) {
  if (S < 0 || E < 1) return fail("expected S >= 0 and E >= 1, got S=%lld, E=%lld", (long long)S, (long long)E);
  if (V != 1 && V != E) return fail("expected V = 1 or E = %lld, got V=%lld", (long long)E, (long long)V);
  const int64_t blocks = num_blocks(S);
  parallel_for(blocks, 1, num_threads, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) INTERMOE_CALL(select_mark, logits, bias, valid, S, E, V, slots, scratch, b);
  });
  int64_t next = 0;
  for (int64_t e = 0; e < E; ++e) {
    offsets[e] = next;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = scratch[b * E + e];
      scratch[b * E + e] = next;
      next += count;
    }
    counts[e] = next - offsets[e];
  }
  offsets[E] = next;
  return 0;
}

int32_t intermoe_select_fill_cpu(const float* logits, int64_t S, int64_t E, int64_t* scratch, int64_t* slots,
                                 int64_t* token_idx, float* gates, int32_t num_threads) {
  if (S < 0 || E < 1) return fail("expected S >= 0 and E >= 1, got S=%lld, E=%lld", (long long)S, (long long)E);
  parallel_for(num_blocks(S), 1, num_threads, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      INTERMOE_CALL(select_scatter, logits, S, E, slots, token_idx, gates, scratch, b);
  });
  return 0;
}

int32_t intermoe_select_backward_cpu(const float* grad_gates, const float* logits, const int64_t* slots, int64_t P,
                                     int64_t S, int64_t E, float* grad_logits, int32_t num_threads) {
  if (S < 0 || E < 1) return fail("expected S >= 0 and E >= 1, got S=%lld, E=%lld", (long long)S, (long long)E);
  if (const int64_t* bad = first_outside(slots, S * E, P))
    return fail("slots holds %lld, but there are %lld pairs", (long long)*bad, (long long)P);
  parallel_for(S, grain(16 * E), num_threads, [&](int64_t first, int64_t last) {
    INTERMOE_CALL(select_backward, grad_gates, logits, slots, E, grad_logits, first, last);
  });
  return 0;
}

}  // extern "C"

#endif
