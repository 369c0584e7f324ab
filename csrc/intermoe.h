/* C interface of the native backend: all of it.
 *
 * Conventions
 *   - Every function that can fail returns 0, or another value after storing a message for intermoe_last_error().
 *   - Arrays are dense, row-major and 16-byte aligned unless said otherwise. Names and shapes are those of the Python
 *     steps:
 *       S tokens, D width, E experts, F expert width, P selected pairs, R rows of the condition (token s has row
 *       s / (S / R)). All sizes and indices are int64.
 *   - `dtype` is the storage type of the arrays marked T; arithmetic is float32.
 *   - *_cpu functions use up to `num_threads` threads and may be called from several threads at once. The result does
 *     not depend on `num_threads`.
 *   - *_cuda functions take the CUDA stream on which the call is queued, on the current device, and do not synchronise.
 *     They are present only where intermoe_has_cuda() is 1.
 */
#ifndef INTERMOE_H
#define INTERMOE_H

#include <stdint.h>

#define INTERMOE_ABI_VERSION 1

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
INTERMOE_API int32_t intermoe_has_cuda(void);
/* Name of the CPU variant in use: "baseline", "avx2" or "avx512". */
INTERMOE_API const char* intermoe_instruction_set(void);
/* Message of the last failure in this thread; "" if there was none. */
INTERMOE_API const char* intermoe_last_error(void);

/* select: selected(s, e) <=> valid[s] and sigmoid(logits[s, e]) + bias[e] > 0; a NaN selects nothing.
 * Two calls, because the caller allocates P pairs in between.
 *   logits   (S, E) float32    bias (E,) float32    valid (S,) uint8 or NULL for all valid
 *   slots    (S, E) int64      out of `count`: 1 = selected, -1 = not; out of `fill`: index of the pair or -1
 *   counts   (E,)   int64      tokens of each expert
 *   offsets  (E+1,) int64      pairs of expert e are offsets[e] .. offsets[e+1]; P = offsets[E]
 *   scratch  (intermoe_select_scratch(S), E) int64, handed from `count` to `fill`, which uses it up
 *   token_idx (P,) int64, gates (P,) float32: pairs ordered by expert, then token; gate = softmax(logits[s, :])[e]
 */
INTERMOE_API int64_t intermoe_select_scratch(int64_t S);
INTERMOE_API int32_t intermoe_select_count_cpu(const float* logits, const float* bias, const uint8_t* valid, int64_t S,
                                               int64_t E, int64_t* slots, int64_t* counts, int64_t* offsets,
                                               int64_t* scratch, int32_t num_threads);
INTERMOE_API int32_t intermoe_select_fill_cpu(const float* logits, int64_t S, int64_t E, int64_t* scratch,
                                              int64_t* slots, int64_t* token_idx, float* gates, int32_t num_threads);

#ifdef __cplusplus
}
#endif
#endif
