// Matrix products of any strides in float32, on any storage type, with the right factor packed before or while they run.
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "product.h"

namespace intermoe {

// out (M, N) = a (M, K) . b (K, N) [+ out] [+ bias]; `x` holds a as float32 (see prepare).
struct Product {
  const float* x;
  int64_t stride;
  bool transposed;
  const void* b;
  int64_t b_row, b_column;
  bool packed;
  const void* bias;  // (N,) T or NULL
  void* out;         // (M, out_row) of T, or of float32 where `wide`
  int64_t out_row, M, N, K;
  bool add, wide;
  int32_t dtype;
};

namespace INTERMOE_VARIANT {

constexpr int64_t kRowBlock = 24 * kTile;  // rows of x that a task takes: panels are packed once for so many

template <class T, class Out, bool transposed>
static void product_tasks(const Product& p, float* room, int64_t first, int64_t last) {
  const int64_t K = p.K, panels = num_panels(p.N, false), groups = (panels + kGroup - 1) / kGroup;
  const Right<T> right{(const T*)p.b, p.b_row, p.b_column, K, p.N, false, p.packed};
  for (int64_t task = first; task < last; ++task) {
    const int64_t panel = task % groups * kGroup, row = task / groups * kRowBlock;
    const int64_t rows = p.M - row < kRowBlock ? p.M - row : kRowBlock;
    const int64_t count = panels - panel < kGroup ? panels - panel : kGroup;
    const int64_t following = panels - panel - count < kGroup ? panels - panel - count : kGroup;
    const char* next = p.packed ? (const char*)((const T*)p.b + (panel + count) * K * kPanel) : nullptr;
    const int64_t next_bytes = p.packed ? following * K * kPanel * (int64_t)sizeof(T) : 0;
    const auto place = [&](int64_t i, int64_t j) {
      return (Out*)p.out + (row + i) * p.out_row + (panel + j) * kPanel;
    };
    const auto body = [&](int64_t i, int64_t j, const float* sums) {
      const int64_t n = (panel + j) * kPanel;
      Out* out = place(i, j);
      for (int64_t d = 0; d < kPanel && d < p.N - n; d += kWidth) {
        Vec total = load(sums + d);
        if (p.bias != nullptr) total = total + load_at((const T*)p.bias + n, d, p.N - n - d);
        if (p.add) total = total + load_at(out, d, p.N - n - d);
        store_at(out, d, p.N - n - d, total);
      }
    };
    const float* x = p.x + (transposed ? row : row * p.stride);
    multiply_group<transposed>(x, p.stride, rows, right.panels(panel, count, room), count, K, next, next_bytes,
                               place, body);
  }
}

template <class T, class Out>
static void product_of(const Product& p, float* room, int64_t first, int64_t last) {
  if (p.transposed) return product_tasks<T, Out, true>(p, room, first, last);
  product_tasks<T, Out, false>(p, room, first, last);
}

void product(const Product& p, float* room, int64_t first, int64_t last) {
  if (p.dtype == INTERMOE_FLOAT32) return product_of<float, float>(p, room, first, last);
  if (p.dtype == INTERMOE_FLOAT16 && p.wide) return product_of<Half, float>(p, room, first, last);
  if (p.dtype == INTERMOE_FLOAT16) return product_of<Half, Half>(p, room, first, last);
  if (p.wide) return product_of<BFloat, float>(p, room, first, last);
  product_of<BFloat, BFloat>(p, room, first, last);
}

int64_t product_tasks_of(int64_t M, int64_t N) {
  return (M + kRowBlock - 1) / kRowBlock * ((num_panels(N, false) + kGroup - 1) / kGroup);
}

int64_t panel_room(int64_t K) { return kGroup * K * kPanel; }

int64_t packed_count(int64_t N, int64_t K, bool paired) { return num_panels(N, paired) * K * kPanel; }

// to (rows, stride) = from (rows, columns)
template <class T>
static void widen_of(const T* from, int64_t from_row, int64_t from_column, int64_t columns, float* to, int64_t stride,
                     int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const T* row = from + i * from_row;
    if (from_column == 1)
      for (int64_t d = 0; d < columns; d += kWidth) store_at(to + i * stride, d, columns - d, load_at(row, d, columns - d));
    else
      for (int64_t d = 0; d < columns; ++d) to[i * stride + d] = widen(row[d * from_column]);
  }
}

void widen_rows(const void* from, int64_t from_row, int64_t from_column, int64_t columns, int32_t dtype, float* to,
                int64_t stride, int64_t first, int64_t last) {
  if (dtype == INTERMOE_FLOAT32) widen_of((const float*)from, from_row, from_column, columns, to, stride, first, last);
  if (dtype == INTERMOE_FLOAT16) widen_of((const Half*)from, from_row, from_column, columns, to, stride, first, last);
  if (dtype == INTERMOE_BFLOAT16) widen_of((const BFloat*)from, from_row, from_column, columns, to, stride, first, last);
}

template <class T>
static void pack_of(const T* b, int64_t row, int64_t column, int64_t N, int64_t K, bool paired, T* packed, float* room,
                    int64_t first, int64_t last) {
  const Right<T> right{b, row, column, K, N, paired, false};
  for (int64_t i = first; i < last; ++i) {
    const float* panel = right.panels(i, 1, room);
    for (int64_t d = 0; d < K * kPanel; d += kWidth) store(packed + i * K * kPanel + d, load(panel + d));
  }
}

void pack_panels(const void* b, int64_t row, int64_t column, int64_t N, int64_t K, bool paired, int32_t dtype,
                 void* packed, float* room, int64_t first, int64_t last) {
  if (dtype == INTERMOE_FLOAT32) pack_of((const float*)b, row, column, N, K, paired, (float*)packed, room, first, last);
  if (dtype == INTERMOE_FLOAT16) pack_of((const Half*)b, row, column, N, K, paired, (Half*)packed, room, first, last);
  if (dtype == INTERMOE_BFLOAT16)
    pack_of((const BFloat*)b, row, column, N, K, paired, (BFloat*)packed, room, first, last);
}

int64_t panels_of(int64_t N, bool paired) { return num_panels(N, paired); }

}  // namespace INTERMOE_VARIANT
}  // namespace intermoe

#ifdef INTERMOE_VARIANT_baseline

namespace intermoe {
INTERMOE_DECLARE(void product(const Product&, float*, int64_t, int64_t))
INTERMOE_DECLARE(int64_t product_tasks_of(int64_t, int64_t))
INTERMOE_DECLARE(int64_t panel_room(int64_t))
INTERMOE_DECLARE(int64_t packed_count(int64_t, int64_t, bool))
INTERMOE_DECLARE(int64_t panels_of(int64_t, bool))
INTERMOE_DECLARE(void widen_rows(const void*, int64_t, int64_t, int64_t, int32_t, float*, int64_t, int64_t, int64_t))
INTERMOE_DECLARE(void pack_panels(const void*, int64_t, int64_t, int64_t, int64_t, bool, int32_t, void*, float*, int64_t,
                                  int64_t))

static int64_t room_for(int64_t K) { return INTERMOE_CALL(panel_room, K); }

// Rows that lie a multiple of 4 KB apart push each other out of the first cache.
static bool collides(int64_t stride) { return stride % 1024 == 0; }

// Runs body(room, first, last) on parts of `count` with memory of their own. Returns whether there was any.
template <class Body>
static bool with_room(int64_t count, int64_t grain, int64_t room, int32_t num_threads, const Body& body) {
  bool enough_memory = true;
  parallel_for(count, grain, num_threads, [&](int64_t first, int64_t last) {
    Room own(room);
    if (own.start != nullptr) return body(own.start, first, last);
#pragma omp atomic write
    enough_memory = false;
  });
  return enough_memory;
}
}  // namespace intermoe

using namespace intermoe;

extern "C" {

int64_t intermoe_packed_count(int64_t N, int64_t K, int32_t paired) { return INTERMOE_CALL(packed_count, N, K, paired != 0); }

int64_t intermoe_large_page(void) {
#if defined(__linux__)
  return 2 << 20;
#else
  return 0;
#endif
}

void intermoe_use_large_pages(void* start, int64_t bytes) {
#if defined(__linux__)
  const int64_t whole = bytes / intermoe_large_page() * intermoe_large_page();
  if (whole > 0) madvise(start, static_cast<size_t>(whole), MADV_HUGEPAGE);  // where there are none all stays as it is
#else
  (void)start, (void)bytes;
#endif
}

int32_t intermoe_pack_cpu(const void* b, int64_t b_row, int64_t b_column, int64_t N, int64_t K, int32_t paired,
                          void* packed, int32_t dtype, int32_t num_threads) {
  if (!known_dtype(dtype) || N < 0 || K < 0 || (paired != 0 && N % 2 != 0))
    return fail("sizes do not fit: N=%lld K=%lld dtype=%d", (long long)N, (long long)K, dtype);
  const bool enough = with_room(INTERMOE_CALL(panels_of, N, paired != 0), 1, room_for(K), num_threads,
                                [&](float* room, int64_t first, int64_t last) {
                                  INTERMOE_CALL(pack_panels, b, b_row, b_column, N, K, paired != 0, dtype, packed, room,
                                                first, last);
                                });
  return enough ? 0 : fail("out of memory");
}

int32_t intermoe_product_cpu(const void* a, int64_t a_row, int64_t a_column, const void* b, int64_t b_row,
                             int64_t b_column, int32_t packed, const void* bias, void* out, int64_t out_row, int64_t M,
                             int64_t N, int64_t K, int32_t add, int32_t wide, int32_t dtype, int32_t num_threads) {
  if (!known_dtype(dtype) || M < 0 || N < 0 || K < 0)
    return fail("sizes do not fit: M=%lld N=%lld K=%lld dtype=%d", (long long)M, (long long)N, (long long)K, dtype);
  const bool transposed = a_column != 1 && a_row == 1;
  Product p{(const float*)a, transposed ? a_column : a_row, transposed, b, b_row, b_column, packed != 0, bias, out,
            out_row, M, N, K, add != 0, wide != 0 || dtype == INTERMOE_FLOAT32, dtype};
  const bool direct = dtype == INTERMOE_FLOAT32 && (transposed || (a_column == 1 && !collides(a_row)));
  const int64_t rows = transposed ? K : M, columns = transposed ? M : K, stride = columns + 16;
  Room left(direct ? 0 : rows * stride);
  if (left.start == nullptr) return fail("out of memory");
  if (!direct) {
    parallel_for(rows, grain(columns), num_threads, [&](int64_t first, int64_t last) {
      INTERMOE_CALL(widen_rows, a, transposed ? a_column : a_row, transposed ? 1 : a_column, columns, dtype, left.start,
                    stride, first, last);
    });
    p.x = left.start, p.stride = stride;
  }
  const int64_t tasks = INTERMOE_CALL(product_tasks_of, M, N);
  const int64_t operations = M * N / 8 * K / (tasks > 0 ? tasks : 1);
  const bool enough = with_room(tasks, grain(operations), room_for(K), num_threads,
                                [&](float* room, int64_t first, int64_t last) { INTERMOE_CALL(product, p, room, first, last); });
  return enough ? 0 : fail("out of memory");
}

}  // extern "C"

#endif
