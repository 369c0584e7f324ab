// Shared by all steps: error reporting, the parallel loop, and the choice of the instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "intermoe.h"

namespace intermoe {

// Stores the message (printf style) for intermoe_last_error() and returns the failure code.
int32_t fail(const char* format, ...);

enum class InstructionSet { baseline, avx2, avx512 };
InstructionSet instruction_set();

// Tokens per block of the selection: fixed, so that results do not depend on the number of threads.
constexpr int64_t kSelectBlock = 512;

inline bool known_dtype(int32_t dtype) { return dtype >= INTERMOE_FLOAT32 && dtype <= INTERMOE_BFLOAT16; }

// Items per thread below which a thread costs more than it saves, for items of that many simple operations.
inline int64_t grain(int64_t operations) { return operations < 32768 ? 32768 / (operations + 1) + 1 : 1; }

// The first of `count` slots that is no pair below P (-1 means none and is fine), or NULL.
inline const int64_t* first_outside(const int64_t* slots, int64_t count, int64_t P) {
  for (int64_t i = 0; i < count; ++i)
    if (slots[i] >= P) return slots + i;
  return nullptr;
}

// Calls body(first, last) on contiguous parts of [0, count), in parallel. `grain` is the least work worth a thread.
template <class Body>
inline void parallel_for(int64_t count, int64_t grain, int32_t num_threads, const Body& body) {
  int64_t parts = count / (grain > 0 ? grain : 1);
  if (parts > num_threads) parts = num_threads;
  if (parts <= 1) {
    if (count > 0) body(static_cast<int64_t>(0), count);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t size = count / parts, rest = count % parts;
    const int64_t first = part * size + (part < rest ? part : rest);
    body(first, first + size + (part < rest ? 1 : 0));
  }
}

// `count` floats on a cache line's boundary, or NULL
struct Room {
  void* whole;
  float* start;
  explicit Room(int64_t count)
      : whole(malloc(static_cast<size_t>(count) * sizeof(float) + 64)),
        start(whole == nullptr ? nullptr : reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(whole) + 63) / 64 * 64)) {}
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { free(whole); }
};

}  // namespace intermoe

// Each step's file is compiled once per instruction set into a namespace of that name. The baseline compilation also
// holds the exported functions, which call the variant that fits the machine.
#ifdef INTERMOE_X86
#define INTERMOE_CALL(function, ...)                                                                   \
  (::intermoe::instruction_set() == ::intermoe::InstructionSet::avx512 ? avx512::function(__VA_ARGS__) \
   : ::intermoe::instruction_set() == ::intermoe::InstructionSet::avx2 ? avx2::function(__VA_ARGS__)   \
                                                                       : baseline::function(__VA_ARGS__))
#define INTERMOE_DECLARE(...)            \
  namespace baseline { __VA_ARGS__; }    \
  namespace avx2 { __VA_ARGS__; }        \
  namespace avx512 { __VA_ARGS__; }
#else
#define INTERMOE_CALL(function, ...) baseline::function(__VA_ARGS__)
#define INTERMOE_DECLARE(...) \
  namespace baseline { __VA_ARGS__; }
#endif
