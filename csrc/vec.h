// Vectors of float32 in the width of the variant being compiled, and their loads from and stores to the storage types.
// Everything has internal linkage or lives in the variant's namespace, so that no code of one variant can replace
// another's when the library is linked.
#pragma once

#include "common.h"
#include "formulas.h"

#if defined(INTERMOE_VARIANT_avx2) || defined(INTERMOE_VARIANT_avx512)
#include <immintrin.h>
#endif

namespace intermoe {

namespace INTERMOE_VARIANT {

#if defined(INTERMOE_VARIANT_avx512)

struct Vec {
  static constexpr int width = 16;
  __m512 v;
};
static inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline Vec load(const BFloat* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline void store(Half* p, Vec a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, 0)); }
static inline void store(BFloat* p, Vec a) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  __m512i y = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16)));
}
static inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Both return `a` where it is NaN.
static inline Vec at_least(Vec a, Vec low) { return {_mm512_max_ps(low.v, a.v)}; }
static inline Vec at_most(Vec a, Vec high) { return {_mm512_min_ps(high.v, a.v)}; }
static inline Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.v, 8)}; }
// a * 2^n for whole n in [-126, 127]
static inline Vec scale_by_power(Vec a, Vec n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(exponent))};
}

#elif defined(INTERMOE_VARIANT_avx2)

struct Vec {
  static constexpr int width = 8;
  __m256 v;
};
static inline Vec splat(float x) { return {_mm256_set1_ps(x)}; }
static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline Vec load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
static inline Vec load(const BFloat* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16))};
}
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
static inline void store(Half* p, Vec a) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.v, 0)); }
static inline void store(BFloat* p, Vec a) {
  const __m256i x = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  const __m256i y = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, nan));
  const __m256i high = _mm256_srli_epi32(y, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x8);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
static inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec at_least(Vec a, Vec low) { return {_mm256_max_ps(low.v, a.v)}; }
static inline Vec at_most(Vec a, Vec high) { return {_mm256_min_ps(high.v, a.v)}; }
static inline Vec round_even(Vec a) { return {_mm256_round_ps(a.v, 8)}; }
static inline Vec scale_by_power(Vec a, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(exponent))};
}

#else

struct Vec {
  static constexpr int width = 4;
  float v[4];
};
#define INTERMOE_LANES(expression)                      \
  Vec out;                                              \
  for (int i = 0; i < 4; ++i) out.v[i] = (expression);  \
  return out
static inline Vec splat(float x) { INTERMOE_LANES(x); }
template <class T>
static inline Vec load(const T* p) {
  INTERMOE_LANES(widen(p[i]));
}
template <class T>
static inline void store(T* p, Vec a) {
  for (int i = 0; i < 4; ++i) narrow(a.v[i], p + i);
}
static inline Vec operator+(Vec a, Vec b) { INTERMOE_LANES(a.v[i] + b.v[i]); }
static inline Vec operator-(Vec a, Vec b) { INTERMOE_LANES(a.v[i] - b.v[i]); }
static inline Vec operator*(Vec a, Vec b) { INTERMOE_LANES(a.v[i] * b.v[i]); }
static inline Vec operator/(Vec a, Vec b) { INTERMOE_LANES(a.v[i] / b.v[i]); }
static inline Vec fma(Vec a, Vec b, Vec c) { INTERMOE_LANES(a.v[i] * b.v[i] + c.v[i]); }
static inline Vec at_least(Vec a, Vec low) { INTERMOE_LANES(a.v[i] < low.v[i] ? low.v[i] : a.v[i]); }
static inline Vec at_most(Vec a, Vec high) { INTERMOE_LANES(a.v[i] > high.v[i] ? high.v[i] : a.v[i]); }
// Adding and removing 1.5 * 2^23 leaves a small number rounded to even.
static inline Vec round_even(Vec a) { INTERMOE_LANES((a.v[i] + 12582912.0f) - 12582912.0f); }
static inline Vec scale_by_power(Vec a, Vec n) {
  // A NaN has no integer value; its product is NaN whatever the power.
  INTERMOE_LANES(a.v[i] * bits_to_float(static_cast<uint32_t>((n.v[i] == n.v[i] ? static_cast<int>(n.v[i]) : 0) + 127)
                                        << 23));
}
#undef INTERMOE_LANES

#endif

constexpr int kWidth = Vec::width;

// Sum of the lanes in a fixed order.
static inline float sum(Vec a) {
  float lanes[kWidth];
  store(lanes, a);
  for (int n = kWidth / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}

// The first n < kWidth elements; the other lanes are 0.
template <class T>
static inline Vec load_part(const T* p, int64_t n) {
  T lanes[kWidth];
  memset(lanes, 0, sizeof lanes);
  memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}
template <class T>
static inline void store_part(T* p, Vec a, int64_t n) {
  T lanes[kWidth];
  store(lanes, a);
  memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
}

// The vector at p + i where n elements are left from there on: a whole one, or the last part.
template <class T>
static inline Vec load_at(const T* p, int64_t i, int64_t n) {
  return n >= kWidth ? load(p + i) : load_part(p + i, n);
}
template <class T>
static inline void store_at(T* p, int64_t i, int64_t n, Vec a) {
  if (n >= kWidth) {
    store(p + i, a);
  } else {
    store_part(p + i, a, n);
  }
}

// e^a to 2 units in the last place; at most e^88.37 and at least e^-87.33, a NaN stays one.
static inline Vec exp(Vec a) {
  a = at_most(at_least(a, splat(-87.33654f)), splat(88.37626f));
  const Vec n = round_even(a * splat(1.44269504f));
  Vec r = fma(n, splat(-0.693359375f), a);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.0f));
  return scale_by_power(p, n);
}

static inline Vec sigmoid(Vec a) {
  const Vec one = splat(1.0f);
  return one / (one + exp(splat(0.0f) - a));
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe
