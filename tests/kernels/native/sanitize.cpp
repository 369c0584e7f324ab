// Calls every function of the C interface on random shapes with arrays of exactly their size and checks what needs no
// reference; prints the number of calls. With -DINTERMOE_SANITIZE=ON the CPU's functions run under sanitizers, which see
// any access outside. With INTERMOE_EMULATED it is CUDA's functions, and an array ends where its memory does.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "intermoe.h"

#ifdef INTERMOE_EMULATED
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#define CALL(step, ...) must(intermoe_##step##_cuda(__VA_ARGS__, 0, nullptr), #step)
#define SUMS sums.as<float>(),
#else
#define CALL(step, ...) must(intermoe_##step##_cpu(__VA_ARGS__, threads), #step)
#define SUMS
#endif

static std::mt19937 generator(0);
static int calls = 0;

static int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

static void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("failed: %s (%s)\n", what, intermoe_last_error());
  std::exit(1);
}

static void must(int32_t status, const char* what) {
  ++calls;
  expect(status == 0, what);
}

// `count` elements of `size` bytes that start `skip` elements after an aligned address.
struct Array {
#ifdef INTERMOE_EMULATED
  // The last byte lies before a page that nobody may touch; `skip` is what the size leaves.
  std::shared_ptr<char> pages;
  Array(int64_t count, int64_t size, int64_t) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = static_cast<size_t>(count * size);
    const size_t whole = (bytes + page - 1) / page * page;
    void* memory = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expect(memory != MAP_FAILED && mprotect(static_cast<char*>(memory) + whole, page, PROT_NONE) == 0, "memory");
    start = whole - bytes;
    pages.reset(static_cast<char*>(memory), [=](char* p) { munmap(p, whole + page); });
  }
  char* data() { return pages.get(); }
#else
  std::vector<char> bytes;
  Array(int64_t count, int64_t size, int64_t skip) : bytes(static_cast<size_t>((count + skip) * size)) {
    bytes.shrink_to_fit();
    start = static_cast<size_t>(skip * size);
  }
  char* data() { return bytes.data(); }
#endif
  size_t start;
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data() + start);
  }
};

static Array values(int64_t count, int32_t dtype, int64_t skip) {
  std::normal_distribution<float> normal;
  const int64_t size = dtype == INTERMOE_FLOAT32 ? 4 : 2;
  Array out(count, size, skip);
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == INTERMOE_FLOAT32) {
      out.as<float>()[i] = normal(generator);
    } else {
      // Any bits are a number, an infinity or a NaN: all must pass without undefined behaviour.
      out.as<uint16_t>()[i] = static_cast<uint16_t>(generator());
    }
  }
  return out;
}

static Array floats(int64_t count, int64_t skip) { return values(count, INTERMOE_FLOAT32, skip); }

static void round_trip(int64_t S, int64_t D, int64_t E, int64_t F, int64_t R, int32_t dtype, float level) {
  const int64_t size = dtype == INTERMOE_FLOAT32 ? 4 : 2, skip = pick(0, 3);
  [[maybe_unused]] const int32_t threads = static_cast<int32_t>(pick(1, 4));
  Array hidden = values(S * D, dtype, skip), weight = floats(E * D, skip), offset = floats(R * E, skip);
  Array scale = floats(R * D, skip), shift = floats(R * D, skip), tokens(S * D, size, skip), logits(S * E, 4, skip);
  Array mean(S, 4, skip), rstd(S, 4, skip);
  const bool conditioned = pick(0, 1) == 1, normalise = pick(0, 3) > 0;
  CALL(route_forward, hidden.as<void>(), weight.as<float>(), conditioned ? offset.as<float>() : nullptr,
       conditioned ? scale.as<float>() : nullptr, conditioned ? shift.as<float>() : nullptr,
       normalise ? tokens.as<void>() : nullptr, logits.as<float>(), mean.as<float>(),
       rstd.as<float>(), S, D, E, conditioned ? R : 0, 1e-6f, dtype);
  if (pick(0, 1) == 1)
    for (int64_t i = 0; i < S * E; ++i) logits.as<float>()[i] = level;

  const int64_t V = pick(0, 1) ? E : 1;  // one mask for all experts, or one each
  Array bias = floats(E, skip), valid(S * V, 1, 0), slots(S * E, 8, 0), counts(E, 8, 0), offsets(E + 1, 8, 0);
  for (int64_t e = 0; e < E; ++e) bias.as<float>()[e] = -0.5f;
  for (int64_t i = 0; i < S * V; ++i) valid.as<uint8_t>()[i] = pick(0, 4) > 0;
  Array scratch(intermoe_select_scratch(S) * E, 8, 0);
  CALL(select_count, logits.as<float>(), bias.as<float>(), pick(0, 1) ? valid.as<uint8_t>() : nullptr, S, E, V,
       slots.as<int64_t>(), counts.as<int64_t>(), offsets.as<int64_t>(),
       scratch.as<int64_t>());
  const int64_t P = offsets.as<int64_t>()[E];
  expect(P >= 0 && P <= S * E, "number of pairs");
  Array token_idx(P, 8, 0), gates(P, 4, skip), grad_gates(P, 4, skip), grad_logits(S * E, 4, skip);
  CALL(select_fill, logits.as<float>(), S, E, scratch.as<int64_t>(), slots.as<int64_t>(),
       token_idx.as<int64_t>(), gates.as<float>());

  Array x(P * D, size, skip), h = values(P * 2 * F, dtype, skip), inner = values(P * F, dtype, skip);
  Array grad_h(P * 2 * F, size, skip), expert_out = values(P * D, dtype, skip), out(S * D, size, skip);
  CALL(gather, hidden.as<void>(), token_idx.as<int64_t>(), P, S, D * size, x.as<void>());
  CALL(swiglu_forward, h.as<void>(), inner.as<void>(), P, F, dtype);
  CALL(swiglu_backward, h.as<void>(), gates.as<float>(), inner.as<void>(), grad_h.as<void>(),
       grad_gates.as<float>(), P, F, dtype);
  CALL(swiglu_backward, h.as<void>(), gates.as<float>(), inner.as<void>(), h.as<void>(),
       grad_gates.as<float>(), P, F, dtype);
  CALL(combine, expert_out.as<void>(), pick(0, 1) ? gates.as<float>() : nullptr, slots.as<int64_t>(),
       nullptr, out.as<void>(), P, S, D, E, dtype);
  CALL(select_backward, grad_gates.as<float>(), logits.as<float>(), slots.as<int64_t>(), P, S, E,
       grad_logits.as<float>());

  Array grad_hidden(S * D, size, skip), grad_weight(E * D, 4, skip), grad_offset((R > 0 ? R : 1) * E, 4, skip);
  Array grad_scale(R * D, 4, skip), grad_shift(R * D, 4, skip);
  const bool modulated = conditioned && normalise;
#ifdef INTERMOE_EMULATED
  Array sums(intermoe_route_scratch_cuda(S, D, E, R), 4, 0);
#endif
  CALL(route_backward, out.as<void>(), grad_logits.as<float>(), hidden.as<void>(), normalise ? mean.as<float>() : nullptr,
       normalise ? rstd.as<float>() : nullptr, weight.as<float>(), modulated ? scale.as<float>() : nullptr,
       pick(0, 1) ? out.as<void>() : grad_hidden.as<void>(), grad_weight.as<float>(), grad_offset.as<float>(),
       modulated ? grad_scale.as<float>() : nullptr, modulated ? grad_shift.as<float>() : nullptr, SUMS
       S, D, E, R, dtype);

#ifndef INTERMOE_EMULATED
  Array ranges(2 * E, 8, 0), room(intermoe_experts_scratch(P, D, F), 4, 0);
  Array gate_up = values(E * 2 * F * D, dtype, skip), down = values(E * D * F, dtype, skip);
  const bool half = pick(0, 2) == 0;  // a chunk that takes the first pairs of each expert only
  int64_t taken = 0;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t start = offsets.as<int64_t>()[e], count = offsets.as<int64_t>()[e + 1] - start;
    ranges.as<int64_t>()[2 * e] = start;
    ranges.as<int64_t>()[2 * e + 1] = start + (half ? count / 2 : count);
    taken += half ? count / 2 : count;
  }
  Array some(taken * D, size, skip);
  CALL(experts_forward, hidden.as<void>(), token_idx.as<int64_t>(), ranges.as<int64_t>(), gate_up.as<void>(),
       down.as<void>(), pick(0, 1) ? h.as<void>() : nullptr, some.as<void>(), room.as<float>(), P, S, D, E, F, 0, dtype);
  const int32_t paired = static_cast<int32_t>(pick(0, 1)), wide = static_cast<int32_t>(pick(0, 1));
  Array panels(intermoe_packed_count(2 * F, D, paired), size, skip);
  CALL(pack, gate_up.as<void>(), 1, D, 2 * F, D, paired, panels.as<void>(), dtype);
  Array product = wide ? floats(S * 2 * F, skip) : values(S * 2 * F, dtype, skip);
  const void* right = paired ? gate_up.as<void>() : panels.as<void>();
  CALL(product, hidden.as<void>(), D, 1, right, 1, D, 1 - paired, nullptr, product.as<void>(), 2 * F, S, 2 * F, D,
       static_cast<int32_t>(pick(0, 1)), wide, dtype);
  CALL(moe_forward, hidden.as<void>(), weight.as<float>(), conditioned ? offset.as<float>() : nullptr,
       modulated ? scale.as<float>() : nullptr, modulated ? shift.as<float>() : nullptr, bias.as<float>(),
       pick(0, 1) ? valid.as<uint8_t>() : nullptr, gate_up.as<void>(), down.as<void>(), out.as<void>(),
       counts.as<int64_t>(), S, D, E, F, conditioned ? R : 0, V, normalise, 1e-6f, dtype);
  if (P > 0) {
    token_idx.as<int64_t>()[P - 1] = S;
    expect(intermoe_gather_cpu(hidden.as<void>(), token_idx.as<int64_t>(), P, S, D * size, x.as<void>(), threads) != 0,
           "a row outside is refused");
    expect(intermoe_combine_cpu(expert_out.as<void>(), nullptr, slots.as<int64_t>(), nullptr, out.as<void>(), P - 1, S, D,
                                E, dtype, threads) != 0,
           "a pair outside is refused");
    ranges.as<int64_t>()[2 * E - 1] = P + 1;
    expect(intermoe_experts_forward_cpu(hidden.as<void>(), token_idx.as<int64_t>(), ranges.as<int64_t>(),
                                        gate_up.as<void>(), down.as<void>(), nullptr, some.as<void>(), room.as<float>(),
                                        P, S, D, E, F, 0, dtype, threads) != 0,
           "a range outside is refused");
  }
#endif
}

int main() {
  // tokens, width, experts, expert width, rows: no tokens, one of everything, tails of every vector width, many experts
  const int64_t shapes[][5] = {{0, 5, 3, 4, 1}, {1, 1, 1, 1, 1}, {7, 17, 1, 9, 7}, {20, 16, 64, 8, 4}, {1030, 33, 5, 3, 2}};
  for (const auto& s : shapes)
    for (int32_t dtype = 0; dtype < 3; ++dtype)
      for (float level : {-30.0f, 30.0f, __builtin_nanf("")}) round_trip(s[0], s[1], s[2], s[3], s[4], dtype, level);
  for (int i = 0; i < 60; ++i) {
    const int64_t rows = pick(1, 5);
    round_trip(rows * pick(0, 60), pick(1, 70), pick(1, 9), pick(1, 40), rows, static_cast<int32_t>(pick(0, 2)), 0.1f);
  }
  // Sizes beyond 2^31 elements must be counted in 64 bits.
  expect(intermoe_select_scratch(int64_t{1} << 40) == int64_t{1} << 31, "scratch of a huge pool");
  std::printf("%d calls, %s\n", calls, intermoe_instruction_set());
  return 0;
}
