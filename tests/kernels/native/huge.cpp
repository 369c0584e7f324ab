// Index arithmetic beyond 2^32 elements: the last tokens of a huge pool must get what they get as a pool of their own.
// The huge arrays are reserved and not filled, so memory is taken only where something is written; of a grid only the last
// blocks run. Exit code 77: the system does not reserve as much.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "route.cu"

namespace intermoe {
namespace baseline {
void select_mark(const float*, const float*, const uint8_t*, int64_t, int64_t, int64_t, int64_t*, int64_t*, int64_t);
void select_scatter(const float*, int64_t, int64_t, int64_t*, int64_t*, float*, int64_t*, int64_t);
void select_backward(const float*, const float*, const int64_t*, int64_t, float*, int64_t, int64_t);
void route_forward(const RouteForward&, int64_t, int64_t);
void route_backward_rows(const RouteBackward&, int64_t, int64_t);
void swiglu_forward(const void*, void*, int64_t, int32_t, int64_t, int64_t);
void swiglu_backward(const void*, const float*, void*, void*, float*, int64_t, int32_t, int64_t, int64_t);
void combine(const void*, const float*, const int64_t*, const int64_t*, void*, int64_t, int64_t, int32_t, int64_t,
             int64_t);
}  // namespace baseline
}  // namespace intermoe

static const int64_t few = 4;                             // tokens that are looked at
static const int64_t E = 64, D = 64, F = 32;              // S * E, S * D and S * 2F are beyond 2^32
static const int64_t S = (int64_t{1} << 26) + 512 + few;  // the selection's last block holds just the few
static const int64_t before = S - few;
static int checks = 0;

static void expect(bool ok, const char* what) {
  ++checks;
  if (ok) return;
  std::printf("failed: %s (%s)\n", what, intermoe_last_error());
  std::exit(1);
}

// So many columns for the whole pool, and for the few last tokens alone.
template <class T>
struct Column {
  T* pool;
  std::vector<T> alone;
  int64_t columns;
  Column(int64_t columns, bool filled) : alone(few * columns), columns(columns) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* p = mmap(nullptr, S * columns * sizeof(T), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) std::exit(77);
    pool = static_cast<T*>(p);
    for (size_t i = 0; filled && i < alone.size(); ++i) alone[i] = static_cast<T>(sin(0.7 * static_cast<double>(i)));
    memcpy(last(), alone.data(), alone.size() * sizeof(T));
  }
  ~Column() { munmap(pool, S * columns * sizeof(T)); }
  T* last() { return pool + before * columns; }
  T* at(bool huge) { return huge ? pool : alone.data(); }
  void check(const char* what) { expect(memcmp(last(), alone.data(), alone.size() * sizeof(T)) == 0, what); }
};

static void check_selection(bool cuda) {
  Column<float> logits(E, true), gates(E, false), grad_logits(E, false);
  Column<int64_t> slots(E, false), token_idx(E, false);
  const std::vector<float> bias(E, -0.5f);
  const int64_t blocks = intermoe_select_scratch(S), first_pair = before * E;
  std::vector<int64_t> scratch(blocks * E), scratch_alone(E), counts(E), offsets(E + 1);
  // Where the logit is 0, which is everywhere before the few, nothing is selected.
  for (bool huge : {false, true}) {
    int64_t* room = huge ? scratch.data() : scratch_alone.data();
    const int64_t size = huge ? S : few;
    if (cuda) {
      expect(intermoe_select_count_cuda(logits.at(huge), bias.data(), nullptr, size, E, 1, slots.at(huge), counts.data(),
                                        offsets.data(), room, 0, nullptr) == 0,
             "select_count");
    } else {
      baseline::select_mark(logits.at(huge), bias.data(), nullptr, size, E, 1, slots.at(huge), room, huge ? blocks - 1 : 0);
    }
  }
  slots.check("marks");
  // The pool's pairs as if every other token had been taken by every expert.
  for (int64_t e = 0, next = 0; e < E; ++e) {
    int64_t& in_pool = scratch[cuda ? e * blocks + blocks - 1 : (blocks - 1) * E + e];
    expect(in_pool == scratch_alone[e], "counts");
    if (!cuda) next += in_pool, scratch_alone[e] = next - in_pool;
    in_pool = scratch_alone[e] + first_pair;
  }
  for (bool huge : {false, true}) {
    int64_t* room = huge ? scratch.data() : scratch_alone.data();
    const int64_t size = huge ? S : few;
    if (cuda) {
      expect(intermoe_select_fill_cuda(logits.at(huge), size, E, room, slots.at(huge), token_idx.at(huge), gates.at(huge),
                                       0, nullptr) == 0,
             "select_fill");
      expect(intermoe_select_backward_cuda(gates.at(huge), logits.at(huge), slots.at(huge), size * E, size, E,
                                           grad_logits.at(huge), 0, nullptr) == 0,
             "select_backward");
    } else {
      baseline::select_scatter(logits.at(huge), size, E, slots.at(huge), token_idx.at(huge), gates.at(huge), room,
                               huge ? blocks - 1 : 0);
      baseline::select_backward(gates.at(huge), logits.at(huge), slots.at(huge), E, grad_logits.at(huge), size - few, size);
    }
  }
  gates.check("gates");
  grad_logits.check("gradient of the logits");
  int64_t pairs = 0;
  for (int64_t i = 0; i < few * E; ++i) {
    const int64_t pair = slots.alone[i];
    expect(slots.last()[i] == (pair < 0 ? -1 : pair + first_pair), "slots");
    if (pair < 0) continue;
    ++pairs;
    expect(token_idx.last()[pair] == token_idx.alone[pair] + before, "token_idx");
  }
  expect(pairs > 0, "something selected");
}

static void check_rows(bool cuda) {
  Column<float> hidden(D, true), scale(D, true), offset(E, true), tokens(D, false), logits(E, false), mean(1, false);
  Column<float> rstd(1, false), grad_hidden(D, false), h(2 * F, true), inner(F, false), grad_h(2 * F, false);
  Column<float> gates(1, true), grad_gates(1, false), out(D, false);
  Column<int64_t> slots(E, false);
  const std::vector<float> weight(E * D, 0.25f);
  for (bool huge : {false, true}) {
    const int64_t size = huge ? S : few, first = size - few;
    for (int64_t i = 0; i < few * E; ++i) (huge ? slots.last() : slots.at(false))[i] = i % E == 3 ? first + i / E : -1;
    const RouteForward a{hidden.at(huge), weight.data(),    offset.at(huge), scale.at(huge), scale.at(huge), tokens.at(huge),
                         logits.at(huge), mean.at(huge),    rstd.at(huge),   size,           D,              E,
                         size,            1e-6f,            INTERMOE_FLOAT32};
    const RouteBackward b{tokens.at(huge), logits.at(huge), hidden.at(huge), mean.at(huge), rstd.at(huge), weight.data(),
                          scale.at(huge),  grad_hidden.at(huge), nullptr, nullptr, nullptr, nullptr, size, D, E, size,
                          INTERMOE_FLOAT32};
    if (cuda) {
      const Grid grid{divide_up(size, kRowsPerBlock)};
      expect(launch({0, nullptr}, route_forward_kernel<float, 4>, grid, kThreads, a) == 0, "route");
      expect(launch({0, nullptr}, grad_hidden_kernel<float, 4>, grid, kThreads, b) == 0, "gradient of route");
      expect(intermoe_swiglu_forward_cuda(h.at(huge), inner.at(huge), size, F, 0, 0, nullptr) == 0, "swiglu");
      expect(intermoe_swiglu_backward_cuda(h.at(huge), gates.at(huge), inner.at(huge), grad_h.at(huge),
                                           grad_gates.at(huge), size, F, 0, 0, nullptr) == 0,
             "gradient of swiglu");
      expect(intermoe_combine_cuda(hidden.at(huge), gates.at(huge), slots.at(huge), nullptr, out.at(huge), size, size, D,
                                   E, 0, 0, nullptr) == 0,
             "combine");
    } else {
      baseline::route_forward(a, first, size);
      baseline::route_backward_rows(b, first, size);
      baseline::swiglu_forward(h.at(huge), inner.at(huge), F, 0, first, size);
      baseline::swiglu_backward(h.at(huge), gates.at(huge), inner.at(huge), grad_h.at(huge), grad_gates.at(huge), F, 0,
                                first, size);
      baseline::combine(hidden.at(huge), gates.at(huge), slots.at(huge), nullptr, out.at(huge), D, E, 0, first, size);
    }
    const std::vector<int64_t> rows{size - 1, size - 3};
    std::vector<float> gathered(2 * D);
    if (cuda) {
      expect(intermoe_gather_cuda(hidden.at(huge), rows.data(), 2, size, D * 4, gathered.data(), 0, nullptr) == 0, "gather");
    } else {
      expect(intermoe_gather_cpu(hidden.at(huge), rows.data(), 2, size, D * 4, gathered.data(), 1) == 0, "gather");
    }
    expect(memcmp(gathered.data(), &hidden.alone[3 * D], D * 4) == 0, "gathered");
    expect(memcmp(&gathered[D], &hidden.alone[D], D * 4) == 0, "gathered");
  }
  for (Column<float>* made : {&tokens, &logits, &mean, &rstd, &grad_hidden, &inner, &grad_h, &grad_gates, &out})
    made->check("rows");
}

int main() {
  emulated::most_blocks = few;
  for (bool cuda : {false, true}) {
    check_selection(cuda);
    check_rows(cuda);
  }
  std::printf("%d checks\n", checks);
  return 0;
}
