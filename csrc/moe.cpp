// All four steps in one call, for pools so small that calls are what costs. Compiled once: the steps choose their variants.
#include <stdlib.h>

#include "common.h"

namespace intermoe {

// Arrays one after the other in one piece of memory, each on a cache line of its own.
class Memory {
 public:
  // The first round of `take` only adds up; then `allocate`, and the same calls again give the arrays.
  template <class T>
  T* take(int64_t count) {
    char* at = start_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return start_ == nullptr ? nullptr : reinterpret_cast<T*>(at);
  }
  bool allocate() {
    start_ = static_cast<char*>(malloc(static_cast<size_t>(used_ > 0 ? used_ : 1)));
    used_ = 0;
    return start_ != nullptr;
  }
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { free(start_); }

 private:
  char* start_ = nullptr;
  int64_t used_ = 0;
};

struct Routing {
  char* tokens;
  float *logits, *mean, *rstd;
  int64_t *slots, *offsets, *scratch, *ranges;
  Routing(Memory* m, int64_t S, int64_t E, int64_t row_bytes)
      : tokens(m->take<char>(S * row_bytes)),
        logits(m->take<float>(S * E)),
        mean(m->take<float>(S)),
        rstd(m->take<float>(S)),
        slots(m->take<int64_t>(S * E)),
        offsets(m->take<int64_t>(E + 1)),
        scratch(m->take<int64_t>(intermoe_select_scratch(S) * E)),
        ranges(m->take<int64_t>(2 * E)) {}
};

struct Pairs {
  int64_t* token_idx;
  float *gates, *scratch;
  char* expert_out;
  Pairs(Memory* m, int64_t P, int64_t D, int64_t F, int64_t row_bytes)
      : token_idx(m->take<int64_t>(P)),
        gates(m->take<float>(P)),
        scratch(m->take<float>(intermoe_experts_scratch(P, D, F))),
        expert_out(m->take<char>(P * row_bytes)) {}
};

}  // namespace intermoe

using namespace intermoe;

extern "C" int32_t intermoe_moe_forward_cpu(const void* hidden, const float* router_weight, const float* router_offset,
                                            const float* scale, const float* shift, const float* bias,
                                            const uint8_t* valid, const void* w_gate_up, const void* w_down, void* out,
                                            int64_t* counts, int64_t S, int64_t D, int64_t E, int64_t F, int64_t R,
                                            int64_t V, int32_t normalise, float eps, int32_t dtype,
                                            int32_t num_threads) {
  if (S < 0 || D < 1 || E < 1 || F < 1 || !known_dtype(dtype))
    return fail("sizes do not fit: S=%lld D=%lld E=%lld F=%lld dtype=%d", (long long)S, (long long)D, (long long)E,
                (long long)F, dtype);
  const int64_t row_bytes = D * (dtype == INTERMOE_FLOAT32 ? 4 : 2);
  Memory routed, paired;
  Routing(&routed, S, E, normalise != 0 ? row_bytes : 0);
  if (!routed.allocate()) return fail("out of memory");
  const Routing r(&routed, S, E, normalise != 0 ? row_bytes : 0);
  if (intermoe_route_forward_cpu(hidden, router_weight, router_offset, scale, shift, normalise != 0 ? r.tokens : nullptr,
                                 r.logits, r.mean, r.rstd, S, D, E, R, eps, dtype, num_threads) != 0 ||
      intermoe_select_count_cpu(r.logits, bias, valid, S, E, V, r.slots, counts, r.offsets, r.scratch, num_threads) != 0)
    return 1;
  const int64_t P = r.offsets[E];
  for (int64_t e = 0; e < E; ++e) r.ranges[2 * e] = r.offsets[e], r.ranges[2 * e + 1] = r.offsets[e + 1];
  Pairs(&paired, P, D, F, row_bytes);
  if (!paired.allocate()) return fail("out of memory");
  const Pairs p(&paired, P, D, F, row_bytes);
  const void* tokens = normalise != 0 ? r.tokens : hidden;
  if (intermoe_select_fill_cpu(r.logits, S, E, r.scratch, r.slots, p.token_idx, p.gates, num_threads) != 0 ||
      intermoe_experts_forward_cpu(tokens, p.token_idx, r.ranges, w_gate_up, w_down, nullptr, p.expert_out, p.scratch, P,
                                   S, D, E, F, 0, dtype, num_threads) != 0)
    return 1;
  return intermoe_combine_cpu(p.expert_out, p.gates, r.slots, nullptr, out, P, S, D, E, dtype, num_threads);
}
