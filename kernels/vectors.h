// Sixteen numbers at a time, as one vector where the processor has AVX-512 and else as pairs of shorter ones: GCC turns
// comparisons and conversions of vectors that are longer than the processor's into code for single numbers.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__) && !defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

struct BF16 { uint16_t bits; };
struct FP16 { _Float16 value; };

constexpr int LANES = 16;
#if defined(__AVX512F__)
constexpr int WIDTH = 16;  // numbers in a register
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Part __attribute__((vector_size(4 * WIDTH)));
typedef int32_t IntPart __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t BitPart __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * WIDTH)));
typedef _Float16 HalfPart __attribute__((vector_size(2 * WIDTH)));

template <typename V>
struct Two {
  V lo, hi;
  float operator[](int i) const {
    float lanes[sizeof(Two) / sizeof(float)];
    std::memcpy(lanes, this, sizeof lanes);
    return lanes[i];
  }
};
template <int N>
struct Wide { typedef Two<typename Wide<N / 2>::type> type; };
template <>
struct Wide<WIDTH> { typedef Part type; };
typedef Wide<LANES>::type Vec;

template <typename V> inline Two<V> operator+(Two<V> a, Two<V> b) { return {a.lo + b.lo, a.hi + b.hi}; }
template <typename V> inline Two<V> operator-(Two<V> a, Two<V> b) { return {a.lo - b.lo, a.hi - b.hi}; }
template <typename V> inline Two<V> operator*(Two<V> a, Two<V> b) { return {a.lo * b.lo, a.hi * b.hi}; }
template <typename V> inline Two<V> operator+(Two<V> a, float b) { return {a.lo + b, a.hi + b}; }
template <typename V> inline Two<V> operator-(Two<V> a, float b) { return {a.lo - b, a.hi - b}; }
template <typename V> inline Two<V> operator*(Two<V> a, float b) { return {a.lo * b, a.hi * b}; }
template <typename V> inline Two<V> operator*(float a, Two<V> b) { return {a * b.lo, a * b.hi}; }
template <typename V> inline Two<V> operator/(Two<V> a, float b) { return {a.lo / b, a.hi / b}; }
template <typename V, typename X> inline Two<V>& operator+=(Two<V>& a, X b) { return a = a + b; }
template <typename V, typename X> inline Two<V>& operator/=(Two<V>& a, X b) { return a = a / b; }

inline void load_to(Part& v, const float* p) { std::memcpy(&v, p, sizeof v); }
inline void load_to(Part& v, const BF16* p) {
  HalfBits bits;
  std::memcpy(&bits, p, sizeof bits);
  v = (Part)(__builtin_convertvector(bits, BitPart) << 16);
}
inline void load_to(Part& v, const FP16* p) {
#if defined(__F16C__) && !defined(__AVX512F__)
  v = (Part)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  HalfPart half;
  std::memcpy(&half, p, sizeof half);
  v = __builtin_convertvector(half, Part);
#endif
}
template <typename V, typename T>
inline void load_to(Two<V>& v, const T* p) {
  load_to(v.lo, p);
  load_to(v.hi, p + sizeof(V) / sizeof(float));
}
template <typename T>
inline Vec load(const T* p) { Vec v; load_to(v, p); return v; }

// 32 channels as the even ones and the odd ones
inline void pair_to(Part& even, Part& odd, const BF16* p) {
  BitPart bits;
  std::memcpy(&bits, p, sizeof bits);
  even = (Part)(bits << 16);
  odd = (Part)(bits & 0xffff0000u);
}
template <typename V>
inline void pair_to(Two<V>& even, Two<V>& odd, const BF16* p) {
  pair_to(even.lo, odd.lo, p);
  pair_to(even.hi, odd.hi, p + 2 * sizeof(V) / sizeof(float));
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

// `yes` where x is below, at most, or equal to a limit, else `no`; x > y ? x : y
inline Part if_below(Part x, float limit, Part yes, Part no) { return x < limit ? yes : no; }
inline Part if_at_most(Part x, float limit, Part yes, Part no) { return x <= limit ? yes : no; }
inline Part if_equal(Part x, float limit, Part yes, Part no) { return x == limit ? yes : no; }
inline Part larger(Part x, Part y) { return x > y ? x : y; }
// the smaller and the larger of two numbers; NaN if one of them is
inline Part smaller_or_nan(Part x, Part y) { return (x < y) | (x != x) ? x : y; }
inline Part larger_or_nan(Part x, Part y) { return (x > y) | (x != x) ? x : y; }
template <typename V>
inline Two<V> if_below(Two<V> x, float limit, Two<V> yes, Two<V> no) {
  return {if_below(x.lo, limit, yes.lo, no.lo), if_below(x.hi, limit, yes.hi, no.hi)};
}
template <typename V>
inline Two<V> if_at_most(Two<V> x, float limit, Two<V> yes, Two<V> no) {
  return {if_at_most(x.lo, limit, yes.lo, no.lo), if_at_most(x.hi, limit, yes.hi, no.hi)};
}
template <typename V>
inline Two<V> if_equal(Two<V> x, float limit, Two<V> yes, Two<V> no) {
  return {if_equal(x.lo, limit, yes.lo, no.lo), if_equal(x.hi, limit, yes.hi, no.hi)};
}
template <typename V>
inline Two<V> larger(Two<V> x, Two<V> y) { return {larger(x.lo, y.lo), larger(x.hi, y.hi)}; }
template <typename V>
inline Two<V> smaller_or_nan(Two<V> x, Two<V> y) { return {smaller_or_nan(x.lo, y.lo), smaller_or_nan(x.hi, y.hi)}; }
template <typename V>
inline Two<V> larger_or_nan(Two<V> x, Two<V> y) { return {larger_or_nan(x.lo, y.lo), larger_or_nan(x.hi, y.hi)}; }

// 2^x for x <= 0, relative error about 1e-7; Taylor series around the nearest integer
inline Part exp2_nonpositive(Part x) {
  x = x < -126.f ? Part{} - 126.f : x;
  IntPart whole = __builtin_convertvector(x - 0.5f, IntPart);
  Part f = x - __builtin_convertvector(whole, Part);
  Part p = Part{} + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * (Part)((whole + 127) << 23);
}
template <typename V>
inline Two<V> exp2_nonpositive(Two<V> x) { return {exp2_nonpositive(x.lo), exp2_nonpositive(x.hi)}; }

inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

// lane i of the result is the sum of the lanes of rows[i], neighbours first
#if defined(__AVX512F__)
inline Vec sum_lanes(const Vec* rows) {
  const IntPart lo1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
  const IntPart hi1 = {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31};
  const IntPart lo2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  const IntPart hi2 = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
  const IntPart lo4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
  const IntPart hi4 = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
  const IntPart lo8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
  const IntPart hi8 = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = __builtin_shuffle(rows[2 * i], rows[2 * i + 1], lo1) + __builtin_shuffle(rows[2 * i], rows[2 * i + 1], hi1);
  for (int i = 0; i < 4; i++)
    b[i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], lo2) + __builtin_shuffle(a[2 * i], a[2 * i + 1], hi2);
  for (int i = 0; i < 2; i++)
    c[i] = __builtin_shuffle(b[2 * i], b[2 * i + 1], lo4) + __builtin_shuffle(b[2 * i], b[2 * i + 1], hi4);
  return __builtin_shuffle(c[0], c[1], lo8) + __builtin_shuffle(c[0], c[1], hi8);
}
#elif defined(__AVX__)
// sums of neighbours of x and y, each in its half of a quarter
inline Part neighbours(Part x, Part y) {
  const IntPart even = {0, 2, 8, 10, 4, 6, 12, 14}, odd = {1, 3, 9, 11, 5, 7, 13, 15};
  return __builtin_shuffle(x, y, even) + __builtin_shuffle(x, y, odd);
}
inline Vec sum_lanes(const Vec* rows) {
  const IntPart first = {0, 1, 2, 3, 8, 9, 10, 11}, second = {4, 5, 6, 7, 12, 13, 14, 15};
  Part lo[4], hi[4], sum[2];
  for (int i = 0; i < 4; i++) {
    const Vec* four = rows + 4 * i;
    lo[i] = neighbours(neighbours(four[0].lo, four[1].lo), neighbours(four[2].lo, four[3].lo));
    hi[i] = neighbours(neighbours(four[0].hi, four[1].hi), neighbours(four[2].hi, four[3].hi));
  }
  for (int i = 0; i < 2; i++) {
    const Part a = lo[2 * i], b = lo[2 * i + 1], c = hi[2 * i], d = hi[2 * i + 1];
    sum[i] = (__builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second)) +
             (__builtin_shuffle(c, d, first) + __builtin_shuffle(c, d, second));
  }
  return {sum[0], sum[1]};
}
#else
inline Vec sum_lanes(const Vec* rows) {
  float sums[LANES];
  for (int i = 0; i < LANES; i++) {
    float x[LANES];
    store(x, rows[i]);
    for (int n = LANES / 2; n; n /= 2) for (int j = 0; j < n; j++) x[j] = x[2 * j] + x[2 * j + 1];
    sums[i] = x[0];
  }
  return load(sums);
}
#endif

}  // namespace
