// Matrix products out = x . panels in float32 on any storage type. A panel is kPanel columns of the right factor, a row of
// them per step of the sum; several panels are multiplied while a tile of x is in the first cache.
#pragma once

#include "vec.h"

#if defined(__GNUC__)
#define INTERMOE_UNROLL _Pragma("GCC unroll 16")
#define INTERMOE_ONCE __attribute__((noinline))  // one copy for all types: this is most of the library's code
#else
#define INTERMOE_UNROLL
#define INTERMOE_ONCE
#endif

namespace intermoe {
namespace INTERMOE_VARIANT {

constexpr int kPanel = 2 * kWidth;  // columns that are multiplied at a time
#if defined(INTERMOE_VARIANT_avx512)
constexpr int kTile = 14;  // most rows of x at a time: their sums, a panel's two vectors and a factor fill the registers
#elif defined(INTERMOE_VARIANT_avx2)
constexpr int kTile = 6;
#else
constexpr int kTile = 2;
#endif
#if defined(INTERMOE_VARIANT_avx512)
constexpr int kGroup = 1;        // panels at a time
constexpr int64_t kDepth = 256;  // steps of the sum at a time: a tile of x and a panel of so many stay in the first cache
#else
constexpr int kGroup = 2;
constexpr int64_t kDepth = 384;
#endif

// Rows at a time so that `count` rows are tiles of about one size, each at most kTile
static inline int64_t tile_rows(int64_t count) {
  const int64_t tiles = (count + kTile - 1) / kTile;
  return (count + tiles - 1) / tiles;
}

static inline void prefetch(const char* p) {
#if defined(INTERMOE_VARIANT_avx2) || defined(INTERMOE_VARIANT_avx512)
  _mm_prefetch(p, _MM_HINT_T1);
#else
  (void)p;
#endif
}

// A panel's columns of one row, in float32
static inline void prefetch_written(const void* p) {
#if defined(INTERMOE_VARIANT_avx512)
  for (int64_t i = 0; i < kPanel * (int64_t)sizeof(float); i += 64) _mm_prefetch((const char*)p + i, _MM_HINT_T0);
#else
  (void)p;
#endif
}

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

// Half of a panel (K, kPanel) = `count` columns of b (K, .), of which element (k, n) is b[k * row + n * column]; what is
// missing to kWidth columns is 0
template <class T>
static void pack_half(const T* b, int64_t row, int64_t column, int64_t count, int64_t K, float* panel) {
  int64_t k = 0;
#if defined(INTERMOE_VARIANT_avx2) || defined(INTERMOE_VARIANT_avx512)
  if (count >= kWidth && row == 1)
    for (; k + 8 <= K; k += 8)
      for (int n = 0; n < kWidth; n += 8) transpose8(b + n * column + k, column, panel + k * kPanel + n);
#endif
  if (count >= kWidth && column == 1)
    for (; k < K; ++k) store(panel + k * kPanel, load(b + k * row));
  for (; k < K; ++k)
    for (int n = 0; n < kWidth; ++n) panel[k * kPanel + n] = n < count ? widen(b[k * row + n * column]) : 0.0f;
}

// A panel of two halves, `low` and `high` columns in from b's start
template <class T>
static void pack(const T* b, int64_t row, int64_t column, int64_t low, int64_t high, int64_t low_count,
                 int64_t high_count, int64_t K, float* panel) {
  pack_half(b + low * column, row, column, low_count, K, panel);
  pack_half(b + high * column, row, column, high_count, K, panel + kWidth);
}

// The first columns of panel `index`, as its two halves: neighbours, or the same columns of the two halves of b
struct Columns {
  int64_t low, high, low_count, high_count;
  Columns(int64_t index, int64_t N, bool paired) {
    const int64_t half = N / 2, end = paired ? half : N;
    low = index * (paired ? kWidth : kPanel);
    high = paired ? half + low : low + kWidth;
    low_count = end - low;
    high_count = paired ? half - low : N - high;
  }
};

static inline int64_t num_panels(int64_t N, bool paired) {
  return paired ? (N / 2 + kWidth - 1) / kWidth : (N + kPanel - 1) / kPanel;
}

// Where panels come from: b (K, N) with strides, or panels that were packed before, in b's own type.
template <class T>
struct Right {
  const T* b;
  int64_t row, column, K, N;
  bool paired, packed;

  // Panels first .. first + count, in float32; `room` holds kGroup of them.
  const float* panels(int64_t first, int64_t count, float* room) const {
    if (packed) {
      const T* from = b + first * K * kPanel;
      if constexpr (sizeof(T) == sizeof(float)) {
        return from;
      } else {
        for (int64_t i = 0; i < count * K * kPanel; i += kWidth) store(room + i, load(from + i));
        return room;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const Columns c(first + i, N, paired);
      pack(b, row, column, c.low, c.high, c.low_count, c.high_count, K, room + i * K * kPanel);
    }
    return room;
  }
};

// out (M, kPanel) = [out +] x (M, K) . panel, and the lines from `next` on, one a step, are fetched for later. Element
// (i, k) of x is x[i * stride + k], or x[k * stride + i] where it is transposed.
template <int M, bool transposed>
INTERMOE_ONCE static void multiply_rows(const float* x, int64_t stride, const float* panel, int64_t K, bool add,
                                 const char* next, float* out) {
  Vec total[M][2];
  INTERMOE_UNROLL  // all loops over rows: else the compiler keeps the sums in memory
  for (int i = 0; i < M; ++i) {
    total[i][0] = add ? load(out + i * kPanel) : splat(0.0f);
    total[i][1] = add ? load(out + i * kPanel + kWidth) : splat(0.0f);
  }
  for (int64_t k = 0; k < K; ++k) {
    const Vec low = load(panel + k * kPanel), high = load(panel + k * kPanel + kWidth);
    prefetch(next + k * 64);
    INTERMOE_UNROLL
    for (int i = 0; i < M; ++i) {
      const Vec factor = splat(transposed ? x[k * stride + i] : x[i * stride + k]);
      total[i][0] = fma(factor, low, total[i][0]);
      total[i][1] = fma(factor, high, total[i][1]);
    }
  }
  INTERMOE_UNROLL
  for (int i = 0; i < M; ++i) {
    store(out + i * kPanel, total[i][0]);
    store(out + i * kPanel + kWidth, total[i][1]);
  }
}

// The same for any number of rows up to kTile
template <bool transposed, int M = kTile>
static inline void multiply(const float* x, int64_t stride, const float* panel, int64_t rows, int64_t K, bool add,
                            const char* next, float* out) {
  if constexpr (M > 1)
    if (rows < M) return multiply<transposed, M - 1>(x, stride, panel, rows, K, add, next, out);
  multiply_rows<M, transposed>(x, stride, panel, K, add, next, out);
}

// Sums of x (rows, K) with `count` panels (K, kPanel), handed to body(row, panel, sums) a row and a panel at a time.
// `next`: `next_bytes` that the following call will read, or NULL. place(row, panel) is where body will write the most:
// these lines are fetched while the sums are made, as else each would be waited for.
template <bool transposed, class Place, class Body>
static inline void multiply_group(const float* x, int64_t stride, int64_t rows, const float* panels, int64_t count,
                                  int64_t K, const char* next, int64_t next_bytes, const Place& place,
                                  const Body& body) {
  if (rows == 0) return;
  float sums[kGroup][kTile * kPanel];
  const int64_t step = tile_rows(rows);
  int64_t fetched = 0;
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t tile = rows - first < step ? rows - first : step;
    for (int64_t i = 0; i < tile; ++i)
      for (int64_t j = 0; j < count; ++j) prefetch_written(place(first + i, j));
    for (int64_t k = 0; k < K; k += kDepth) {
      const int64_t depth = K - k < kDepth ? K - k : kDepth;
      for (int64_t j = 0; j < count; ++j) {
        const float* from = x + (transposed ? k * stride + first : first * stride + k);
        const float* panel = panels + (j * K + k) * kPanel;
        const bool more = fetched + depth * 64 <= next_bytes;
        multiply<transposed>(from, stride, panel, tile, depth, k > 0, more ? next + fetched : (const char*)panel, sums[j]);
        fetched += depth * 64;
      }
    }
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < tile; ++i) body(first + i, j, sums[j] + i * kPanel);
  }
}

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe
