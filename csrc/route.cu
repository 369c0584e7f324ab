// Step 1, route, on CUDA: a warp per token. Sums over tokens are made in two rounds of fixed order: over runs of tokens,
// then over the runs.
#include "route.h"

#include "device.h"

namespace intermoe {

constexpr int kRowsPerBlock = kThreads / kWarp;
constexpr int kDots = 8;            // experts whose logits are summed at a time
constexpr int kSums = 4;            // experts whose weight gradients are summed at a time
constexpr int64_t kMostRuns = 256;  // enough to fill a device
constexpr int64_t kLeastRun = 64;   // tokens

template <class T, int N>
static __global__ void route_forward_kernel(const RouteForward a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp, D = a.D, E = a.E;
  if (s >= a.S) return;
  const T* row = static_cast<const T*>(a.hidden) + s * D;
  const int64_t r = a.R > 0 ? s / (a.S / a.R) : 0;
  float total = 0.0f;
  for (int64_t first = 0; first < E; first += kDots) {
    float dots[kDots] = {};
    const int64_t left = E - first;
    for (int64_t d = lane * N; d < D; d += kWarp * N) {
      float x[N], w[N];
      load(row + d, x);
#pragma unroll
      for (int i = 0; i < N; ++i) total += first == 0 ? x[i] : 0.0f;
#pragma unroll
      for (int e = 0; e < kDots; ++e) {
        if (e >= left) continue;
        load(a.router_weight + (first + e) * D + d, w);
#pragma unroll
        for (int i = 0; i < N; ++i) dots[e] = fma(x[i], w[i], dots[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kDots; ++e) {
      const float dot = warp_sum(dots[e]);
      if (lane != e || e >= left) continue;
      a.logits[s * E + first + e] = a.router_offset == nullptr ? dot : dot + a.router_offset[r * E + first + e];
    }
  }
  if (a.tokens == nullptr) return;

  const float mean = warp_sum(total) / static_cast<float>(D);
  float squares = 0.0f, off = 0.0f;
  for (int64_t d = lane * N; d < D; d += kWarp * N) {
    float x[N];
    load(row + d, x);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      squares = fma(x[i] - mean, x[i] - mean, squares);
      off += x[i] - mean;
    }
  }
  const float missed = warp_sum(off) / static_cast<float>(D);  // what a sum of large numbers left of the mean
  const float rstd = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(D) - missed * missed + a.eps);
  if (lane == 0) {
    a.mean[s] = mean + missed;
    a.rstd[s] = rstd;
  }
  for (int64_t d = lane * N; d < D; d += kWarp * N) {
    float x[N];
    load(row + d, x);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = (x[i] - mean - missed) * rstd;
    if (a.scale != nullptr) {
      float scale[N], shift[N];
      load(a.scale + r * D + d, scale);
      load(a.shift + r * D + d, shift);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = modulate(x[i], scale[i], shift[i], 1.0f);
    }
    store(static_cast<T*>(a.tokens) + s * D + d, x);
  }
}

// grad_hidden; it may lie over grad_tokens, so every thread reads only elements that no other writes.
template <class T, int N>
static __global__ void grad_hidden_kernel(const RouteBackward a) {
  const int lane = threadIdx.x % kWarp;
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp, D = a.D;
  if (s >= a.S) return;
  const T *row = static_cast<const T*>(a.hidden) + s * D, *grad = static_cast<const T*>(a.grad_tokens) + s * D;
  const float* scale = a.scale == nullptr ? nullptr : a.scale + s / (a.S / a.R) * D;
  const bool normalised = a.mean != nullptr;
  const float mean = normalised ? a.mean[s] : 0.0f, rstd = normalised ? a.rstd[s] : 1.0f;
  float plain = 0.0f, along = 0.0f;
  for (int64_t d = lane * N; normalised && d < D; d += kWarp * N) {
    float x[N], g[N], c[N] = {};
    load(row + d, x);
    load(grad + d, g);
    if (scale != nullptr) load(scale + d, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float scaled = g[i] * (1.0f + c[i]);
      plain += scaled;
      along = fma(scaled, (x[i] - mean) * rstd, along);
    }
  }
  plain = warp_sum(plain) / static_cast<float>(D);
  along = warp_sum(along) / static_cast<float>(D);
  for (int64_t d = lane * N; d < D; d += kWarp * N) {
    float x[N], g[N], c[N] = {};
    load(grad + d, g);
    if (normalised) {
      load(row + d, x);
      if (scale != nullptr) load(scale + d, c);
#pragma unroll
      for (int i = 0; i < N; ++i)
        g[i] = layer_norm_gradient(g[i] * (1.0f + c[i]), (x[i] - mean) * rstd, rstd, plain, along);
    }
    for (int64_t e = 0; e < a.E; ++e) {
      const float weight = a.grad_logits[s * a.E + e];
      load(a.router_weight + e * D + d, x);
#pragma unroll
      for (int i = 0; i < N; ++i) g[i] = fma(weight, x[i], g[i]);
    }
    store(static_cast<T*>(a.grad_hidden) + s * D + d, g);
  }
}

// partial (runs, E, D): sums of grad_logits * hidden over a run of `length` tokens; grid (runs, columns, experts)
template <class T, int N>
static __global__ void grad_weight_kernel(const RouteBackward a, float* partial, int64_t length) {
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * N, D = a.D, E = a.E;
  if (d >= D) return;
  const int64_t run = blockIdx.x, first = static_cast<int64_t>(blockIdx.z) * kSums, left = E - first;
  const int64_t last = (run + 1) * length < a.S ? (run + 1) * length : a.S;
  float sums[kSums][N] = {};
  for (int64_t s = run * length; s < last; ++s) {
    float x[N];
    load(static_cast<const T*>(a.hidden) + s * D + d, x);
#pragma unroll
    for (int e = 0; e < kSums; ++e) {
      const float weight = e < left ? a.grad_logits[s * E + first + e] : 0.0f;
#pragma unroll
      for (int i = 0; i < N; ++i) sums[e][i] = fma(weight, x[i], sums[e][i]);
    }
  }
#pragma unroll
  for (int e = 0; e < kSums; ++e)
    if (e < left) store(partial + (run * E + first + e) * D + d, sums[e]);
}

// grad_scale, grad_shift (R * runs, D): sums over a run of `length` tokens of one row; grid (R * runs, columns)
template <class T, int N>
static __global__ void grad_modulation_kernel(const RouteBackward a, float* grad_scale, float* grad_shift, int64_t runs,
                                              int64_t length) {
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * N, D = a.D, per_row = a.S / a.R;
  if (d >= D) return;
  const int64_t r = blockIdx.x / runs, first = blockIdx.x % runs * length;
  const int64_t last = first + length < per_row ? first + length : per_row;
  float scale[N] = {}, shift[N] = {};
  for (int64_t s = r * per_row + first; s < r * per_row + last; ++s) {
    float x[N], g[N];
    load(static_cast<const T*>(a.hidden) + s * D + d, x);
    load(static_cast<const T*>(a.grad_tokens) + s * D + d, g);
    const float mean = a.mean[s], rstd = a.rstd[s];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      scale[i] = fma(g[i], (x[i] - mean) * rstd, scale[i]);
      shift[i] += g[i];
    }
  }
  store(grad_scale + blockIdx.x * D + d, scale);
  store(grad_shift + blockIdx.x * D + d, shift);
}

// partial (rows, runs, size) -> out (rows, size), summed over the runs in their order
static __global__ void sum_runs_kernel(const float* partial, int64_t runs, int64_t rows, int64_t size, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * size) return;
  const float* first = partial + i / size * runs * size + i % size;
  float total = 0.0f;
  for (int64_t run = 0; run < runs; ++run) total += first[run * size];
  out[i] = total;
}

// grad_router_offset (R, E): sums of grad_logits over each row's tokens; grid (R, E)
static __global__ void grad_offset_kernel(const float* grad_logits, int64_t per_row, int64_t E, float* out) {
  __shared__ float parts[kThreads / kWarp];
  const int64_t r = blockIdx.x, e = blockIdx.y;
  float total = 0.0f;
  for (int64_t s = threadIdx.x; s < per_row; s += kThreads) total += grad_logits[(r * per_row + s) * E + e];
  total = block_sum(total, parts);
  if (threadIdx.x == 0) out[r * E + e] = total;
}

// Runs of `length` tokens that `tokens` are summed in; one (empty) run of no tokens.
struct Runs {
  int64_t count, length;
  Runs(int64_t tokens, int64_t most) {
    const int64_t wanted = divide_up(tokens, kLeastRun) < most ? divide_up(tokens, kLeastRun) : most;
    length = divide_up(tokens, wanted > 0 ? wanted : 1);
    if (length < 1) length = 1;
    count = tokens > 0 ? divide_up(tokens, length) : 1;
  }
};

static Runs runs_of_pool(int64_t S) { return Runs(S, kMostRuns); }
static Runs runs_of_row(int64_t S, int64_t R) { return Runs(S / R, kMostRuns / R > 0 ? kMostRuns / R : 1); }

}  // namespace intermoe

using namespace intermoe;

extern "C" {

int32_t intermoe_route_forward_cuda(const void* hidden, const float* router_weight, const float* router_offset,
                                    const float* scale, const float* shift, void* tokens, float* logits, float* mean,
                                    float* rstd, int64_t S, int64_t D, int64_t E, int64_t R, float eps, int32_t dtype,
                                    int32_t device, void* stream) {
  const RouteForward a{hidden, router_weight, router_offset, scale, shift, tokens, logits, mean, rstd,
                       S,      D,             E,             R,     eps,   dtype};
  if (check_sizes(a) != 0) return 1;
  const bool wide = D % per_16_bytes(dtype) == 0 && aligned({hidden, router_weight, scale, shift, tokens});
  return by_type(dtype, wide, [&](auto access) {
    using A = decltype(access);
    const Grid grid{divide_up(S, kRowsPerBlock)};
    return launch({device, stream}, route_forward_kernel<typename A::Element, A::width>, grid, kThreads, a);
  });
}

int64_t intermoe_route_scratch_cuda(int64_t S, int64_t D, int64_t E, int64_t R) {
  const int64_t rows = R > 0 ? R : 1, runs = runs_of_row(S, rows).count;
  return runs_of_pool(S).count * E * D + (runs > 1 ? 2 * rows * runs * D : 0);
}

int32_t intermoe_route_backward_cuda(const void* grad_tokens, const float* grad_logits, const void* hidden,
                                     const float* mean, const float* rstd, const float* router_weight,
                                     const float* scale, void* grad_hidden, float* grad_router_weight,
                                     float* grad_router_offset, float* grad_scale, float* grad_shift, float* scratch,
                                     int64_t S, int64_t D, int64_t E, int64_t R, int32_t dtype, int32_t device,
                                     void* stream) {
  const int64_t rows = R > 0 ? R : 1;
  const RouteBackward a{grad_tokens, grad_logits, hidden, mean, rstd, router_weight, scale, grad_hidden,
                        grad_router_weight, grad_router_offset, grad_scale, grad_shift, S, D, E, rows, dtype};
  if (check_sizes(a) != 0) return 1;
  const Place at{device, stream};
  const bool wide = D % per_16_bytes(dtype) == 0 &&
                    aligned({hidden, grad_tokens, router_weight, scale, grad_hidden, grad_scale, grad_shift, scratch});
  const Runs pool = runs_of_pool(S), row = runs_of_row(S, rows);
  float* partial_scale = row.count > 1 ? scratch + pool.count * E * D : grad_scale;
  float* partial_shift = row.count > 1 ? partial_scale + rows * row.count * D : grad_shift;
  // grad_hidden last, because it may lie over grad_tokens.
  const int32_t failed = by_type(dtype, wide, [&](auto access) {
    using A = decltype(access);
    using T = typename A::Element;
    const int64_t columns = divide_up(D, kThreads * A::width);
    const Grid weights{pool.count, columns, divide_up(E, kSums)};
    if (grad_router_weight != nullptr &&
        launch(at, grad_weight_kernel<T, A::width>, weights, kThreads, a, scratch, pool.length) != 0)
      return 1;
    if (grad_scale != nullptr && launch(at, grad_modulation_kernel<T, A::width>, {rows * row.count, columns}, kThreads,
                                        a, partial_scale, partial_shift, row.count, row.length) != 0)
      return 1;
    return launch(at, grad_hidden_kernel<T, A::width>, {divide_up(S, kRowsPerBlock)}, kThreads, a);
  });
  if (failed != 0) return 1;
  const auto sum_runs = [&](const float* partial, int64_t runs, int64_t count, int64_t size, float* out) {
    return launch(at, sum_runs_kernel, {divide_up(count * size, kThreads)}, kThreads, partial, runs, count, size, out);
  };
  if (grad_router_weight != nullptr && sum_runs(scratch, pool.count, 1, E * D, grad_router_weight) != 0) return 1;
  if (grad_scale != nullptr && row.count > 1) {
    if (sum_runs(partial_scale, row.count, rows, D, grad_scale) != 0) return 1;
    if (sum_runs(partial_shift, row.count, rows, D, grad_shift) != 0) return 1;
  }
  return launch(at, grad_offset_kernel, {rows, E}, kThreads, grad_logits, S / rows, E, grad_router_offset);
}

}  // extern "C"
