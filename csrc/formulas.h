// The arithmetic of single elements, written once: for the CPU's vectors, for CUDA, and for plain floats.
// Everything is static or a template of a variant's own vector, so that no code of one variant can replace another's.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define INTERMOE_BOTH __host__ __device__ __forceinline__
#else
#define INTERMOE_BOTH inline
#endif

namespace intermoe {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

static INTERMOE_BOTH float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
static INTERMOE_BOTH uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static INTERMOE_BOTH float widen(float x) { return x; }
static INTERMOE_BOTH float widen(BFloat x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
static INTERMOE_BOTH float widen(Half x) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // A subnormal counts 2^-24, and is counted as an integer: as a float it would be lost to a thread that flushes those.
  const float wide = rest < 0x400 ? static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f
                                  : bits_to_float((rest << 13) + 0x38000000);
  return bits_to_float(sign | float_to_bits(wide));
#endif
}

static INTERMOE_BOTH void narrow(float x, float* p) { *p = x; }
static INTERMOE_BOTH void narrow(float x, BFloat* p) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
  const uint32_t bits = float_to_bits(x);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}
static INTERMOE_BOTH void narrow(float x, Half* p) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: the sum's last bit is 2^-24
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | half);
#endif
}

static INTERMOE_BOTH float fma(float a, float b, float c) { return fmaf(a, b, c); }
static INTERMOE_BOTH float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Whether an expert takes a token. A NaN compares false: it selects nothing, nor does a sum of exactly 0.
static INTERMOE_BOTH bool selects(float logit, float bias) { return sigmoid(logit) + bias > 0.0f; }

template <class V>
struct Swiglu {
  V chance, silu, activation;
};
// activation = silu(gate) * up
template <class V>
static INTERMOE_BOTH Swiglu<V> swiglu(V gate, V up) {
  const V chance = sigmoid(gate), silu = gate * chance;
  return {chance, silu, silu * up};
}
// Derivative of the activation with respect to the gate; the one with respect to up is silu.
template <class V>
static INTERMOE_BOTH V swiglu_slope(const Swiglu<V>& s, V up, V one) {
  return up * (s.chance + s.silu * (one - s.chance));
}

// AdaLN's scale and shift of a normalised element
template <class V>
static INTERMOE_BOTH V modulate(V normal, V scale, V shift, V one) {
  return fma(normal, one + scale, shift);
}
// Gradient of LayerNorm's input from that of its output; mean_plain and mean_along are the means of grad and grad * normal.
template <class V>
static INTERMOE_BOTH V layer_norm_gradient(V grad, V normal, V rstd, V mean_plain, V mean_along) {
  return rstd * (grad - mean_plain - normal * mean_along);
}

}  // namespace intermoe
