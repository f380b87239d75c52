// Sixteen numbers at a time, in GCC's and clang's portable vectors: AVX-512 where the processor has it.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

struct BF16 { uint16_t bits; };
struct FP16 { _Float16 value; };

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t BitVec __attribute__((vector_size(64)));
typedef uint16_t HalfBits __attribute__((vector_size(32)));
typedef _Float16 HalfVec __attribute__((vector_size(32)));

inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
inline Vec load(const BF16* p) {
  HalfBits bits;
  std::memcpy(&bits, p, sizeof bits);
  BitVec wide = __builtin_convertvector(bits, BitVec) << 16;
  return (Vec)wide;
}
inline Vec load(const FP16* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, Vec);
}

// 32 channels as the even ones and the odd ones
inline void load_pair(const BF16* p, Vec& even, Vec& odd) {
  BitVec bits;
  std::memcpy(&bits, p, sizeof bits);
  even = (Vec)(bits << 16);
  odd = (Vec)(bits & 0xffff0000u);
}

inline float number(float x) { return x; }
inline float number(BF16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline float number(FP16 x) { return (float)x.value; }

// rounds to nearest, ties to even; NaN stays NaN
inline void put(float x, float* to) { *to = x; }
inline void put(float x, FP16* to) { to->value = (_Float16)x; }
inline void put(float x, BF16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  to->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// 2^x for x <= 0, relative error about 1e-7; Taylor series around the nearest integer
inline Vec exp2_nonpositive(Vec x) {
  x = x < -126.f ? Vec{} - 126.f : x;
  IntVec whole = __builtin_convertvector(x - 0.5f, IntVec);
  Vec f = x - __builtin_convertvector(whole, Vec);
  Vec p = Vec{} + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * (Vec)((whole + 127) << 23);
}

}  // namespace
