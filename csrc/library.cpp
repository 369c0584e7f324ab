// What does not belong to a step: version, errors, instruction set.
#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "common.h"

#if defined(INTERMOE_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#elif defined(INTERMOE_X86)
#include <cpuid.h>
#endif

namespace intermoe {

static thread_local char message[512] = "";

int32_t fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return 1;
}

static InstructionSet detect() {
#if defined(INTERMOE_X86) && defined(_MSC_VER)
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const bool saved = (leaf1[2] >> 27) & 1;
  const uint64_t state = saved ? _xgetbv(0) : 0;
  const bool fma_f16c = (leaf1[2] >> 12 & 1) && (leaf1[2] >> 29 & 1);
  const bool avx2 = fma_f16c && (leaf7[1] >> 5 & 1) && (state & 0x6) == 0x6;
  const bool avx512 = (leaf7[1] >> 16 & 1) && (leaf7[1] >> 17 & 1) && (leaf7[1] >> 30 & 1) && (leaf7[1] >> 31 & 1);
  if (avx2 && avx512 && (state & 0xe6) == 0xe6) return InstructionSet::avx512;
  if (avx2) return InstructionSet::avx2;
#elif defined(INTERMOE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512) return InstructionSet::avx512;
  if (avx2) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

#if defined(INTERMOE_X86)
// eax, ebx, ecx, edx of a leaf; zeros where the CPU has none
static void cpuid(uint32_t leaf, uint32_t part, uint32_t* registers) {
  for (int i = 0; i < 4; ++i) registers[i] = 0;
#if defined(_MSC_VER)
  __cpuidex(reinterpret_cast<int*>(registers), static_cast<int>(leaf), static_cast<int>(part));
#else
  __get_cpuid_count(leaf, part, registers, registers + 1, registers + 2, registers + 3);
#endif
}
#endif

static const InstructionSet found = detect();
static std::atomic<InstructionSet> in_use{found};

InstructionSet instruction_set() { return in_use.load(std::memory_order_relaxed); }

}  // namespace intermoe

extern "C" {

int32_t intermoe_abi_version(void) { return INTERMOE_ABI_VERSION; }

int32_t intermoe_cuda_built(void) {
#ifdef INTERMOE_CUDA
  return 1;
#else
  return 0;
#endif
}

const char* intermoe_instruction_set(void) {
  switch (intermoe::instruction_set()) {
    case intermoe::InstructionSet::avx512: return "avx512";
    case intermoe::InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

const char* intermoe_vendor(void) {
#if defined(INTERMOE_X86)
  uint32_t name[4];
  intermoe::cpuid(0, 0, name);
  if (name[1] == 0x756e6547) return "intel";
  if (name[1] == 0x68747541) return "amd";
#endif
  return "other";
}

int32_t intermoe_half_units(void) {
#if defined(INTERMOE_X86)
  if (intermoe::found != intermoe::InstructionSet::avx512) return 0;  // all of these units come with it
  uint32_t first[4], second[4];
  intermoe::cpuid(7, 0, first);
  intermoe::cpuid(7, 1, second);
  const bool bfloat16 = (second[0] >> 5 & 1) || (first[3] >> 22 & 1);  // AVX512_BF16, AMX-BF16
  const bool float16 = (first[3] >> 23 & 1) || (second[0] >> 21 & 1);  // AVX512_FP16, AMX-FP16
  return (bfloat16 ? 1 : 0) + (float16 ? 2 : 0);
#else
  return -1;
#endif
}

int32_t intermoe_use_instruction_set(int32_t level) {
  if (level < 0 || level > static_cast<int32_t>(intermoe::found))
    return intermoe::fail("this machine has the instruction sets 0 to %d, got %d", static_cast<int>(intermoe::found), level);
  intermoe::in_use = static_cast<intermoe::InstructionSet>(level);
  return 0;
}

const char* intermoe_last_error(void) { return intermoe::message; }

}  // extern "C"
