/* C interface of the native backend: all of it.
 *
 * Conventions
 *   - Every function that can fail returns 0, or another value after storing a message for intermoe_last_error().
 *   - Arrays are dense, row-major and 16-byte aligned unless said otherwise. Names and shapes are those of the Python
 *     steps:
 *       S tokens, D width, E experts, F expert width, P selected pairs, R rows of the condition (token s has row
 *       s / (S / R)). All sizes and indices are int64.
 *   - `dtype` is the storage type of the arrays marked T; arithmetic is float32.
 *   - *_cuda functions are in libraries built with CUDA only. Their pointers are of `device`, and they put their kernels on
 *     `stream` (a cudaStream_t) without waiting for it. They report what keeps a kernel from starting; an index that is
 *     out of range is not accessed and gives NaN. Otherwise they do what the *_cpu function of the same name does.
 *   - *_cpu functions use up to `num_threads` threads and may be called from several threads at once. The result does
 *     not depend on `num_threads`.
 */
#ifndef INTERMOE_H
#define INTERMOE_H

#include <stdint.h>

#define INTERMOE_ABI_VERSION 6

#if defined(_WIN32)
#define INTERMOE_API __declspec(dllexport)
#else
#define INTERMOE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum intermoe_dtype { INTERMOE_FLOAT32 = 0, INTERMOE_FLOAT16 = 1, INTERMOE_BFLOAT16 = 2 };

INTERMOE_API int32_t intermoe_abi_version(void);
/* 1 if the library has the *_cuda functions. */
INTERMOE_API int32_t intermoe_cuda_built(void);
/* Fails with the reason if the CUDA kernels cannot run on the device. */
INTERMOE_API int32_t intermoe_check_cuda(int32_t device);
/* Name of the CPU variant in use: "baseline", "avx2" or "avx512". */
INTERMOE_API const char* intermoe_instruction_set(void);
/* "intel", "amd" or "other". */
INTERMOE_API const char* intermoe_vendor(void);
/* Which half types this CPU multiplies at speed, in units that the system lets it use: 1 bfloat16, 2 float16, 3 both;
 * -1 where that is not known. */
INTERMOE_API int32_t intermoe_half_units(void);
/* For tests: the CPU variant that calls use from now on, in this process. 0 baseline, 1 avx2, 2 avx512; fails where the
 * machine lacks it. Not while another call runs. */
INTERMOE_API int32_t intermoe_use_instruction_set(int32_t level);
/* Message of the last failure in this thread; "" if there was none. */
INTERMOE_API const char* intermoe_last_error(void);

/* select: selected(s, e) <=> valid[s, e] and sigmoid(logits[s, e]) + bias[e] > 0; exactly 0 and NaN select nothing.
 * Two calls, because the caller allocates P pairs in between.
 *   logits   (S, E) float32    bias (E,) float32, or NULL where `valid` is the choice itself
 *   valid    (S, V) uint8 or NULL for all valid; V = E, or V = 1 for what holds for every expert
 *   slots    (S, E) int64      out of `count`: 1 = selected, -1 = not; out of `fill`: index of the pair or -1
 *   counts   (E,)   int64      tokens of each expert
 *   offsets  (E+1,) int64      pairs of expert e are offsets[e] .. offsets[e+1]; P = offsets[E]
 *   scratch  (intermoe_select_scratch(S), E) int64, handed from `count` to `fill`, which uses it up
 *   token_idx (P,) int64, gates (P,) float32: pairs ordered by expert, then token; gate = softmax(logits[s, :])[e]
 */
INTERMOE_API int64_t intermoe_select_scratch(int64_t S);
INTERMOE_API int32_t intermoe_select_count_cpu(const float* logits, const float* bias, const uint8_t* valid, int64_t S,
                                               int64_t E, int64_t V, int64_t* slots, int64_t* counts, int64_t* offsets,
                                               int64_t* scratch, int32_t num_threads);
INTERMOE_API int32_t intermoe_select_count_cuda(const float* logits, const float* bias, const uint8_t* valid,
                                                int64_t S, int64_t E, int64_t V, int64_t* slots, int64_t* counts,
                                                int64_t* offsets, int64_t* scratch, int32_t device, void* stream);
INTERMOE_API int32_t intermoe_select_fill_cpu(const float* logits, int64_t S, int64_t E, int64_t* scratch,
                                              int64_t* slots, int64_t* token_idx, float* gates, int32_t num_threads);
INTERMOE_API int32_t intermoe_select_fill_cuda(const float* logits, int64_t S, int64_t E, int64_t* scratch,
                                               int64_t* slots, int64_t* token_idx, float* gates, int32_t device,
                                               void* stream);

/* grad_logits (S, E) float32 from grad_gates (P,) float32: the gradient of the softmax, dense over E. */
INTERMOE_API int32_t intermoe_select_backward_cpu(const float* grad_gates, const float* logits, const int64_t* slots,
                                                  int64_t P, int64_t S, int64_t E, float* grad_logits,
                                                  int32_t num_threads);
INTERMOE_API int32_t intermoe_select_backward_cuda(const float* grad_gates, const float* logits, const int64_t* slots,
                                                   int64_t P, int64_t S, int64_t E, float* grad_logits, int32_t device,
                                                   void* stream);

/* route: logits = hidden . router_weight^T + router_offset; tokens = LayerNorm(hidden) * (1 + scale) + shift.
 *   hidden, tokens (S, D) T    logits (S, E) float32    mean, rstd (S,) float32
 *   router_weight (E, D), router_offset (R, E), scale, shift (R, D): float32; the last three may be NULL
 *   tokens NULL: no normalisation, mean and rstd are not touched. R = 0: no array has rows.
 */
INTERMOE_API int32_t intermoe_route_forward_cpu(const void* hidden, const float* router_weight,
                                                const float* router_offset, const float* scale, const float* shift,
                                                void* tokens, float* logits, float* mean, float* rstd, int64_t S,
                                                int64_t D, int64_t E, int64_t R, float eps, int32_t dtype,
                                                int32_t num_threads);
INTERMOE_API int32_t intermoe_route_forward_cuda(const void* hidden, const float* router_weight,
                                                 const float* router_offset, const float* scale, const float* shift,
                                                 void* tokens, float* logits, float* mean, float* rstd, int64_t S,
                                                 int64_t D, int64_t E, int64_t R, float eps, int32_t dtype,
                                                 int32_t device, void* stream);
/* mean and rstd NULL: there was no normalisation, and grad_scale and grad_shift are NULL too.
 *   grad_tokens, grad_hidden (S, D) T, which may be the same array; every other gradient is float32; grad_router_offset has R rows, at least one.
 *   grad_router_weight NULL: it is not computed.
 */
INTERMOE_API int32_t intermoe_route_backward_cpu(const void* grad_tokens, const float* grad_logits, const void* hidden,
                                                 const float* mean, const float* rstd, const float* router_weight,
                                                 const float* scale, void* grad_hidden, float* grad_router_weight,
                                                 float* grad_router_offset, float* grad_scale, float* grad_shift,
                                                 int64_t S, int64_t D, int64_t E, int64_t R, int32_t dtype,
                                                 int32_t num_threads);
/* scratch: intermoe_route_scratch_cuda(S, D, E, R) float32. */
INTERMOE_API int64_t intermoe_route_scratch_cuda(int64_t S, int64_t D, int64_t E, int64_t R);
INTERMOE_API int32_t intermoe_route_backward_cuda(const void* grad_tokens, const float* grad_logits,
                                                  const void* hidden, const float* mean, const float* rstd,
                                                  const float* router_weight, const float* scale, void* grad_hidden,
                                                  float* grad_router_weight, float* grad_router_offset,
                                                  float* grad_scale, float* grad_shift, float* scratch, int64_t S,
                                                  int64_t D, int64_t E, int64_t R, int32_t dtype, int32_t device,
                                                  void* stream);

/* product: out (M, N) = a (M, K) . b (K, N), summed in float32 whatever T is.
 *   a, b T: element (i, j) is at i * row + j * column    bias (N,) T or NULL, added to each row
 *   out (M, .) with out_row elements a row: float32 where `wide`, else T    add: the product is added to what out holds
 *   packed: b is what intermoe_pack_cpu made of it, and b_row and b_column are not read
 */
INTERMOE_API int32_t intermoe_product_cpu(const void* a, int64_t a_row, int64_t a_column, const void* b, int64_t b_row,
                                          int64_t b_column, int32_t packed, const void* bias, void* out,
                                          int64_t out_row, int64_t M, int64_t N, int64_t K, int32_t add, int32_t wide,
                                          int32_t dtype, int32_t num_threads);
/* b (K, N) in the order in which the CPU variant in use reads it; other variants read another.
 *   packed: intermoe_packed_count(N, K, paired) elements T    paired: columns n and N / 2 + n come to lie side by side
 */
INTERMOE_API int64_t intermoe_packed_count(int64_t N, int64_t K, int32_t paired);
INTERMOE_API int32_t intermoe_pack_cpu(const void* b, int64_t b_row, int64_t b_column, int64_t N, int64_t K,
                                       int32_t paired, void* packed, int32_t dtype, int32_t num_threads);
/* Bytes of a large page of memory, 0 where they are not known; and the wish for such from `start` on, which lies on the
 * boundary of one: where the system has none nothing changes. */
INTERMOE_API int64_t intermoe_large_page(void);
INTERMOE_API void intermoe_use_large_pages(void* start, int64_t bytes);

/* experts with their products, in float32 whatever T is: for few pairs, and for types that the machine cannot multiply.
 *   tokens (S, D) T, token_idx (P,) int64, w_gate_up (E, 2F, D) T, w_down (E, D, F) T, h (P, 2F) T or NULL
 *   ranges (E, 2) int64: the pairs of each expert that are computed; expert_out (., D) T has a row for each, in order
 *   scratch: intermoe_experts_scratch(P, D, F) float32
 *   packed: the weights are, expert by expert, what intermoe_pack_cpu made of w_gate_up[e]^T, paired, and w_down[e]^T
 */
INTERMOE_API int64_t intermoe_experts_scratch(int64_t P, int64_t D, int64_t F);
INTERMOE_API int32_t intermoe_experts_forward_cpu(const void* tokens, const int64_t* token_idx, const int64_t* ranges,
                                                  const void* w_gate_up, const void* w_down, void* h, void* expert_out,
                                                  float* scratch, int64_t P, int64_t S, int64_t D, int64_t E, int64_t F,
                                                  int32_t packed, int32_t dtype, int32_t num_threads);

/* experts: what surrounds the matrix products where these are the caller's.
 *   gather: out[i, :] = source[rows[i], :]; rows (count,) int64 below num_rows; a row has row_bytes bytes.
 */
INTERMOE_API int32_t intermoe_gather_cpu(const void* source, const int64_t* rows, int64_t count, int64_t num_rows,
                                         int64_t row_bytes, void* out, int32_t num_threads);
INTERMOE_API int32_t intermoe_gather_cuda(const void* source, const int64_t* rows, int64_t count, int64_t num_rows,
                                          int64_t row_bytes, void* out, int32_t device, void* stream);
/* h (P, 2F) T: gate | up -> activation (P, F) T = silu(gate) * up */
INTERMOE_API int32_t intermoe_swiglu_forward_cpu(const void* h, void* activation, int64_t P, int64_t F, int32_t dtype,
                                                 int32_t num_threads);
INTERMOE_API int32_t intermoe_swiglu_forward_cuda(const void* h, void* activation, int64_t P, int64_t F, int32_t dtype,
                                                  int32_t device, void* stream);
/*   inner (P, F) T    in: grad_out . W_down    out: gates * activation
 *   gates (P,), grad_gates (P,) float32: grad_gates = sum over F of inner * activation
 *   grad_h (P, 2F) T, may be h itself
 */
INTERMOE_API int32_t intermoe_swiglu_backward_cpu(const void* h, const float* gates, void* inner, void* grad_h,
                                                  float* grad_gates, int64_t P, int64_t F, int32_t dtype,
                                                  int32_t num_threads);
INTERMOE_API int32_t intermoe_swiglu_backward_cuda(const void* h, const float* gates, void* inner, void* grad_h,
                                                   float* grad_gates, int64_t P, int64_t F, int32_t dtype,
                                                   int32_t device, void* stream);

/* combine: out[s, :] = sum over e with slots[s, e] >= 0 of gates[slots[s, e]] * expert_out[slots[s, e], :]
 *   expert_out (P, D) T, gates (P,) float32 or NULL for ones, slots (S, E) int64 below P, out (S, D) T
 *   shift (E,) int64 or NULL for zeros: pair p of expert e is in row p - shift[e] of an expert_out that holds the pairs
 *   of these S tokens only; gates are of all pairs
 */
INTERMOE_API int32_t intermoe_combine_cpu(const void* expert_out, const float* gates, const int64_t* slots,
                                          const int64_t* shift, void* out, int64_t P, int64_t S, int64_t D, int64_t E,
                                          int32_t dtype, int32_t num_threads);
INTERMOE_API int32_t intermoe_combine_cuda(const void* expert_out, const float* gates, const int64_t* slots,
                                           const int64_t* shift, void* out, int64_t P, int64_t S, int64_t D, int64_t E,
                                           int32_t dtype, int32_t device, void* stream);

/* All of the forward in one call, for inference on few tokens; names and shapes as above, R = 0 without such rows.
 * It allocates what lies between, some S * E rows of D + F float32 at most.
 */
INTERMOE_API int32_t intermoe_moe_forward_cpu(const void* hidden, const float* router_weight,
                                              const float* router_offset, const float* scale, const float* shift,
                                              const float* bias, const uint8_t* valid, const void* w_gate_up,
                                              const void* w_down, void* out, int64_t* counts, int64_t S, int64_t D,
                                              int64_t E, int64_t F, int64_t R, int64_t V, int32_t normalise, float eps,
                                              int32_t dtype, int32_t num_threads);

/* launch: kernels that another compiler made and loaded, started through the CUDA driver, all those of a call at once.
 * Little-endian machines.
 *   driver   address of cuLaunchKernel in the library `name`, as opened here; 0 where there is none (see last_error)
 *   program  int64 numbers: launches L, places N; N times (base, bytes): the pointer bases[base] + bytes; L times
 *            (function, grid x, y, z, threads of a block, bytes of shared memory, parameters M, and M times a source:
 *            the number of a place, or -i for the value in program[i], as many of its first bytes as the kernel takes)
 *   bases    pointers of this call
 * Fails with what the driver said where the first launch failed, so that nothing was started, and with -1 later.
 */
INTERMOE_API int64_t intermoe_open_driver(const char* name);
INTERMOE_API int32_t intermoe_launch(int64_t driver, int64_t* program, const int64_t* bases, void* stream);

#ifdef __cplusplus
}
#endif
#endif
