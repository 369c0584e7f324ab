// Step 2, select, on CUDA, without sort or atomics: counts per block of tokens and expert, one scan in (expert, block)
// order, a stable scatter. Pairs come out ordered by expert, then token.
#include "device.h"

namespace intermoe {

constexpr int kTokens = static_cast<int>(kSelectBlock);  // per block, a thread each
constexpr int kWarps = kTokens / kWarp;
constexpr int kExperts = 32;  // at a time, which bounds the shared memory
constexpr int kScan = 256;    // threads of the scan's only block

// Writes how many of each warp's tokens the expert takes.
static __device__ __forceinline__ void count_warps(bool selected, int e, int (&counts)[kWarps][kExperts]) {
  const unsigned taken = __ballot_sync(kWholeWarp, selected);
  if (threadIdx.x % kWarp == 0) counts[threadIdx.x / kWarp][e] = __popc(taken);
}

// logits (S, E), bias (E,) or NULL, valid (S, V) or NULL -> slots (S, E) of 1 or -1, scratch (E, blocks) of counts
static __global__ void mark_kernel(const float* logits, const float* bias, const uint8_t* valid, int64_t S, int64_t E,
                                   int64_t V, int64_t* slots, int64_t* scratch) {
  __shared__ int counts[kWarps][kExperts];
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kTokens + threadIdx.x;
  for (int64_t first = 0; first < E; first += kExperts) {
    const int group = static_cast<int>(E - first < kExperts ? E - first : kExperts);
    for (int i = 0; i < group; ++i) {
      const int64_t e = first + i;
      bool selected = false;
      if (s < S) {
        const bool open = valid == nullptr || valid[s * V + (V == 1 ? 0 : e)] != 0;
        selected = open && (bias == nullptr || selects(logits[s * E + e], bias[e]));
        slots[s * E + e] = selected ? 1 : -1;
      }
      count_warps(selected, i, counts);
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < group) {
      int64_t total = 0;
      for (int w = 0; w < kWarps; ++w) total += counts[w][threadIdx.x];
      scratch[(first + threadIdx.x) * gridDim.x + blockIdx.x] = total;
    }
    __syncthreads();
  }
}

// scratch (E, blocks): counts -> first pair of that expert and block;  counts (E,), offsets (E+1,)
static __global__ void scan_kernel(int64_t* scratch, int64_t blocks, int64_t E, int64_t* counts, int64_t* offsets) {
  __shared__ int64_t sums[kScan];
  const int t = threadIdx.x;
  int64_t before = 0;  // pairs of all earlier rounds, the same in every thread
  for (int64_t first = 0; first < E * blocks; first += kScan) {
    const int64_t i = first + t;
    const int64_t own = i < E * blocks ? scratch[i] : 0;
    sums[t] = own;
    __syncthreads();
    for (int step = 1; step < kScan; step *= 2) {
      const int64_t left = t >= step ? sums[t - step] : 0;
      __syncthreads();
      sums[t] += left;
      __syncthreads();
    }
    if (i < E * blocks) {
      scratch[i] = before + sums[t] - own;
      if (i % blocks == 0) offsets[i / blocks] = before + sums[t] - own;
    }
    before += sums[kScan - 1];
    __syncthreads();
  }
  for (int64_t e = t; e <= E; e += kScan)
    if (e == E || blocks == 0) offsets[e] = before;
  __syncthreads();
  for (int64_t e = t; e < E; e += kScan) counts[e] = offsets[e + 1] - offsets[e];
}

// scratch (E, blocks) from the scan, slots (S, E) of 1 or -1 -> slots of pairs, token_idx (P,), gates (P,)
static __global__ void scatter_kernel(const float* logits, int64_t S, int64_t E, const int64_t* scratch, int64_t* slots,
                                      int64_t* token_idx, float* gates) {
  __shared__ int counts[kWarps][kExperts];
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kTokens + threadIdx.x;
  const int warp = threadIdx.x / kWarp;
  const unsigned earlier = (1u << threadIdx.x % kWarp) - 1;
  const float* row = logits + s * E;
  float top = 0.0f, sum = 0.0f;
  if (s < S) {
    top = row[0];
    for (int64_t e = 1; e < E; ++e) top = row[e] > top ? row[e] : top;
    for (int64_t e = 0; e < E; ++e) sum += expf(row[e] - top);
  }
  for (int64_t first = 0; first < E; first += kExperts) {
    const int group = static_cast<int>(E - first < kExperts ? E - first : kExperts);
    for (int i = 0; i < group; ++i) count_warps(s < S && slots[s * E + first + i] >= 0, i, counts);
    __syncthreads();
    for (int i = 0; i < group; ++i) {
      const int64_t e = first + i;
      const bool selected = s < S && slots[s * E + e] >= 0;
      const unsigned taken = __ballot_sync(kWholeWarp, selected);
      if (!selected) continue;
      int64_t pair = scratch[e * gridDim.x + blockIdx.x] + __popc(taken & earlier);
      for (int w = 0; w < warp; ++w) pair += counts[w][i];
      slots[s * E + e] = pair;
      token_idx[pair] = s;
      gates[pair] = expf(row[e] - top) / sum;
    }
    __syncthreads();
  }
}

// grad_logits[s, e] = p_e * (G_e - sum_i p_i G_i), p = softmax(logits[s, :]), G_e = grad_gates[slots[s, e]] or 0
static __global__ void select_backward_kernel(const float* grad_gates, const float* logits, const int64_t* slots,
                                              int64_t P, int64_t S, int64_t E, float* grad_logits) {
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (s >= S) return;
  const float* row = logits + s * E;
  const int64_t* pairs = slots + s * E;
  float* out = grad_logits + s * E;
  bool taken = false;
  float top = row[0], sum = 0.0f, mean = 0.0f;
  for (int64_t e = 0; e < E; ++e) {
    taken = taken || pairs[e] >= 0;
    top = row[e] > top ? row[e] : top;
  }
  // A pair outside cannot be refused without waiting for it: no access, and a result that shows it.
  const auto gradient = [&](int64_t e) {
    return pairs[e] < 0 ? 0.0f : pairs[e] < P ? grad_gates[pairs[e]] : bits_to_float(0x7fc00000);
  };
  for (int64_t e = 0; e < E; ++e) {
    const float p = expf(row[e] - top);
    sum += p;
    mean += p * gradient(e);
  }
  mean /= sum;
  for (int64_t e = 0; e < E; ++e) out[e] = taken ? expf(row[e] - top) / sum * (gradient(e) - mean) : 0.0f;
}

}  // namespace intermoe

using namespace intermoe;

static int32_t check(int64_t S, int64_t E) {
  if (S >= 0 && E >= 1) return 0;
  return fail("expected S >= 0 and E >= 1, got S=%lld, E=%lld", (long long)S, (long long)E);
}

extern "C" {

int32_t intermoe_select_count_cuda(const float* logits, const float* bias, const uint8_t* valid, int64_t S, int64_t E,
                                   int64_t V, int64_t* slots, int64_t* counts, int64_t* offsets, int64_t* scratch,
                                   int32_t device, void* stream) {
  if (check(S, E) != 0) return 1;
  if (V != 1 && V != E) return fail("expected V = 1 or E = %lld, got V=%lld", (long long)E, (long long)V);
  const Place at{device, stream};
  const int64_t blocks = intermoe_select_scratch(S);
  if (launch(at, mark_kernel, {blocks}, kTokens, logits, bias, valid, S, E, V, slots, scratch) != 0) return 1;
  return launch(at, scan_kernel, {1}, kScan, scratch, blocks, E, counts, offsets);
}

int32_t intermoe_select_fill_cuda(const float* logits, int64_t S, int64_t E, int64_t* scratch, int64_t* slots,
                                  int64_t* token_idx, float* gates, int32_t device, void* stream) {
  if (check(S, E) != 0) return 1;
  const int64_t blocks = intermoe_select_scratch(S);
  return launch({device, stream}, scatter_kernel, {blocks}, kTokens, logits, S, E, scratch, slots, token_idx, gates);
}

int32_t intermoe_select_backward_cuda(const float* grad_gates, const float* logits, const int64_t* slots, int64_t P,
                                      int64_t S, int64_t E, float* grad_logits, int32_t device, void* stream) {
  if (check(S, E) != 0) return 1;
  return launch({device, stream}, select_backward_kernel, {divide_up(S, kThreads)}, kThreads, grad_gates, logits, slots,
                P, S, E, grad_logits);
}

}  // extern "C"
