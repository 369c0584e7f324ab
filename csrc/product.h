// Products with weights that are stored a row per output, out = x . weight^T, in float32 on any storage type: for few rows
// and for types that the machine cannot multiply, where the large libraries spend more on conversion and packing.
#pragma once

#include "vec.h"

namespace intermoe {
namespace INTERMOE_VARIANT {

constexpr int kPanel = 2 * kWidth;  // weight rows that are multiplied at a time
#if defined(INTERMOE_VARIANT_avx512)
constexpr int kTile = 12;  // rows of x at a time: their sums, a panel's two vectors and a factor fill the registers
#elif defined(INTERMOE_VARIANT_avx2)
constexpr int kTile = 6;
#else
constexpr int kTile = 2;
#endif

#if defined(INTERMOE_VARIANT_avx2) || defined(INTERMOE_VARIANT_avx512)

static inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 load8(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline __m256 load8(const BFloat* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}

// Columns of the 8 x 8 elements at `from` become rows at `to`.
template <class T>
static inline void transpose8(const T* from, int64_t stride, float* to) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = load8(from + i * stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * kPanel, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * kPanel, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}

#endif

// panel (K, kPanel) = the first `count` rows of weight (., K), transposed; what is missing to kPanel rows is 0
template <class T>
static void pack(const T* weight, int64_t count, int64_t K, float* panel) {
  int64_t k = 0;
#if defined(INTERMOE_VARIANT_avx2) || defined(INTERMOE_VARIANT_avx512)
  if (count >= kPanel)
    for (; k + 8 <= K; k += 8)
      for (int row = 0; row < kPanel; row += 8) transpose8(weight + row * K + k, K, panel + k * kPanel + row);
#endif
  for (; k < K; ++k)
    for (int row = 0; row < kPanel; ++row) panel[k * kPanel + row] = row < count ? widen(weight[row * K + k]) : 0.0f;
}

template <int M>
static inline void multiply_rows(const float* x, const float* panel, int64_t K, float* out) {
  Vec total[M][2];
  for (int i = 0; i < M; ++i) total[i][0] = total[i][1] = splat(0.0f);
  for (int64_t k = 0; k < K; ++k) {
    const Vec low = load(panel + k * kPanel), high = load(panel + k * kPanel + kWidth);
    for (int i = 0; i < M; ++i) {
      const Vec factor = splat(x[i * K + k]);
      total[i][0] = fma(factor, low, total[i][0]);
      total[i][1] = fma(factor, high, total[i][1]);
    }
  }
  for (int i = 0; i < M; ++i) {
    store(out + i * kPanel, total[i][0]);
    store(out + i * kPanel + kWidth, total[i][1]);
  }
}

// out (rows, kPanel) = x (rows, K) . panel, for at most kTile rows
static void multiply(const float* x, const float* panel, int64_t rows, int64_t K, float* out) {
  if (rows == kTile) return multiply_rows<kTile>(x, panel, K, out);
  int64_t i = 0;
  if constexpr (kTile > 4)
    for (; i + 4 <= rows; i += 4) multiply_rows<4>(x + i * K, panel, K, out + i * kPanel);
  if constexpr (kTile > 2)
    for (; i + 2 <= rows; i += 2) multiply_rows<2>(x + i * K, panel, K, out + i * kPanel);
  for (; i < rows; ++i) multiply_rows<1>(x + i * K, panel, K, out + i * kPanel);
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe
