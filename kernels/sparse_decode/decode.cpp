// Grouped-query decode attention over ragged slot lists, split into fixed pieces that are merged by their
// log-sum-exp. One job is one (row, KV head): its keys and values lie in a prefix (shared or owned) followed by a
// tail of appended tokens. The split does not depend on the number of threads, so neither do the results.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int BLOCK = 64;    // slots whose scores are held at a time
constexpr int SPLIT = 512;   // slots per piece of work
constexpr int MAX_GROUP = 32;
constexpr float NEGATIVE = -3.0e38f;  // stands for minus infinity

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

// 2^x for x <= 0 to about 1e-7 relative; the Taylor series about the nearest whole number
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

// lane i of the result is the sum of the lanes of rows[i]
inline Vec sum_lanes(const Vec* rows) {
  const IntVec lo1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
  const IntVec hi1 = {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31};
  const IntVec lo2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  const IntVec hi2 = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
  const IntVec lo4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
  const IntVec hi4 = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
  const IntVec lo8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
  const IntVec hi8 = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = __builtin_shuffle(rows[2 * i], rows[2 * i + 1], lo1) + __builtin_shuffle(rows[2 * i], rows[2 * i + 1], hi1);
  for (int i = 0; i < 4; i++)
    b[i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], lo2) + __builtin_shuffle(a[2 * i], a[2 * i + 1], hi2);
  for (int i = 0; i < 2; i++)
    c[i] = __builtin_shuffle(b[2 * i], b[2 * i + 1], lo4) + __builtin_shuffle(b[2 * i], b[2 * i + 1], hi4);
  return __builtin_shuffle(c[0], c[1], lo8) + __builtin_shuffle(c[0], c[1], hi8);
}

struct Call {
  const float* q;            // [jobs, G, D]
  float* out;                // [jobs, G, D]
  float* lse;                // [jobs, G] natural log, or null
  const int64_t* k_prefix;   // [jobs] addresses of [prefix, D]
  const int64_t* v_prefix;
  const int64_t* prefix;     // [jobs] slots in the prefix
  const int64_t* k_tail;     // [jobs] addresses of [tail, D]
  const int64_t* v_tail;
  const int64_t* tail;       // [jobs] slots in the tail
  const int64_t* index;      // [jobs] addresses of int32 slot lists, 0: every slot; negative entries are skipped
  const int64_t* indexed;    // [jobs] length of the list
  const int64_t* mask;       // [jobs] addresses of uint8 [G, prefix], 0: no mask
  int64_t jobs, group, dim;
  float scaling;
};

struct Piece { int64_t job, low, high; };

// weighted sums of the block's values for N query heads at once; N * C accumulators stay in registers
template <typename T, int C, int N>
inline void add_values(const T* const* values, const float (*weights)[BLOCK], int n, float* partial) {
  Vec sum[N][C];
  for (int g = 0; g < N; g++) for (int c = 0; c < C; c++) sum[g][c] = load(partial + (g * C + c) * LANES);
  for (int j = 0; j < n; j++) {
    for (int c = 0; c < C; c++) {
      const Vec v = load(values[j] + c * LANES);
      for (int g = 0; g < N; g++) sum[g][c] += weights[g][j] * v;
    }
  }
  for (int g = 0; g < N; g++) for (int c = 0; c < C; c++) std::memcpy(partial + (g * C + c) * LANES, &sum[g][c], sizeof(Vec));
}

// C = head dimension / LANES
template <typename T, int C>
void attend(const Call& call, const Piece& piece, float* partial, float* peak, float* total) {
  constexpr int64_t D = C * LANES;
  const int64_t G = call.group, job = piece.job;
  const T* kp = (const T*)call.k_prefix[job];
  const T* vp = (const T*)call.v_prefix[job];
  const T* kt = (const T*)call.k_tail[job];
  const T* vt = (const T*)call.v_tail[job];
  const int64_t prefix = call.prefix[job];
  const int32_t* index = (const int32_t*)call.index[job];
  const uint8_t* mask = (const uint8_t*)call.mask[job];
  const float log2_scale = call.scaling * 1.4426950408889634f;
  const T* keys[BLOCK];
  const T* values[BLOCK];
  int64_t slots[BLOCK];
  alignas(64) Vec lanes[BLOCK];
  alignas(64) float scores[MAX_GROUP][BLOCK];
  for (int64_t g = 0; g < G; g++) { peak[g] = NEGATIVE; total[g] = 0.f; }
  std::memset(partial, 0, sizeof(float) * G * D);

  for (int64_t base = piece.low; base < piece.high; base += BLOCK) {
    int n = 0;
    const int64_t end = std::min<int64_t>(base + BLOCK, piece.high);
    for (int64_t i = base; i < end; i++) {
      const int64_t slot = index ? index[i] : i;
      if (slot < 0) continue;
      keys[n] = slot < prefix ? kp + slot * D : kt + (slot - prefix) * D;
      values[n] = slot < prefix ? vp + slot * D : vt + (slot - prefix) * D;
      if (index) {
        for (int64_t c = 0; c < D * (int64_t)sizeof(T); c += 64) {
          __builtin_prefetch((const char*)keys[n] + c);
          __builtin_prefetch((const char*)values[n] + c, 0, 2);
        }
      }
      slots[n++] = slot;
    }
    if (!n) continue;
    const int padded = (n + LANES - 1) / LANES * LANES;
    for (int64_t g = 0; g < G; g++) {
      Vec q[C];
      for (int c = 0; c < C; c++) q[c] = load(call.q + (job * G + g) * D + c * LANES);
      for (int j = 0; j < n; j++) {
        Vec sum = q[0] * load(keys[j]);
        for (int c = 1; c < C; c++) sum += q[c] * load(keys[j] + c * LANES);
        lanes[j] = sum;
      }
      for (int j = n; j < padded; j++) lanes[j] = Vec{};
      float* s = scores[g];
      Vec best = Vec{} + NEGATIVE;
      for (int j = 0; j < padded; j += LANES) {
        const Vec dots = sum_lanes(lanes + j) * log2_scale;
        std::memcpy(s + j, &dots, sizeof dots);
      }
      if (mask) for (int j = 0; j < n; j++) if (slots[j] < prefix && !mask[g * prefix + slots[j]]) s[j] = NEGATIVE;
      for (int j = n; j < padded; j++) s[j] = NEGATIVE;
      for (int j = 0; j < padded; j += LANES) {
        const Vec x = load(s + j);
        best = x > best ? x : best;
      }
      float top = peak[g];
      for (int i = 0; i < LANES; i++) top = std::max(top, best[i]);
      if (top == NEGATIVE) {
        std::memset(s, 0, sizeof(float) * padded);
        continue;
      }
      Vec sum = Vec{};
      for (int j = 0; j < padded; j += LANES) {
        const Vec x = load(s + j);
        const Vec weight = x == NEGATIVE ? Vec{} : exp2_nonpositive(x - top);
        std::memcpy(s + j, &weight, sizeof weight);
        sum += weight;
      }
      const float rescale = peak[g] == NEGATIVE ? 0.f : exp2f(peak[g] - top);
      float mass = 0.f;
      for (int i = 0; i < LANES; i++) mass += sum[i];
      total[g] = total[g] * rescale + mass;
      peak[g] = top;
      if (rescale != 1.f) for (int64_t d = 0; d < D; d++) partial[g * D + d] *= rescale;
    }
    int64_t g = 0;
    if constexpr (C <= 8) for (; g + 2 <= G; g += 2) add_values<T, C, 2>(values, scores + g, n, partial + g * D);
    for (; g < G; g++) add_values<T, C, 1>(values, scores + g, n, partial + g * D);
  }
}

template <typename T, int C>
void run(const Call& call) {
  const int64_t G = call.group, D = C * LANES;
  std::vector<Piece> pieces;
  std::vector<int64_t> first(call.jobs + 1);
  for (int64_t job = 0; job < call.jobs; job++) {
    first[job] = (int64_t)pieces.size();
    const int64_t slots = call.index[job] ? call.indexed[job] : call.prefix[job] + call.tail[job];
    for (int64_t low = 0; low < slots; low += SPLIT) pieces.push_back({job, low, std::min(slots, low + SPLIT)});
  }
  first[call.jobs] = (int64_t)pieces.size();
  const int64_t n = (int64_t)pieces.size();
  std::vector<float> partial(n * G * D), peak(n * G), total(n * G);

  #pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < n; i++) {
    attend<T, C>(call, pieces[i], &partial[i * G * D], &peak[i * G], &total[i * G]);
  }
  for (int64_t job = 0; job < call.jobs; job++) {
    for (int64_t g = 0; g < G; g++) {
      float* out = call.out + (job * G + g) * D;
      std::memset(out, 0, sizeof(float) * D);
      float top = NEGATIVE, sum = 0.f;
      for (int64_t i = first[job]; i < first[job + 1]; i++) top = std::max(top, peak[i * G + g]);
      for (int64_t i = first[job]; i < first[job + 1]; i++) {
        if (peak[i * G + g] == NEGATIVE) continue;
        const float weight = exp2f(peak[i * G + g] - top);
        sum += weight * total[i * G + g];
        const float* p = &partial[(i * G + g) * D];
        for (int64_t d = 0; d < D; d++) out[d] += weight * p[d];
      }
      if (sum > 0.f) for (int64_t d = 0; d < D; d++) out[d] /= sum;
      if (call.lse) call.lse[job * G + g] = sum > 0.f ? (top + std::log2(sum)) * 0.6931471805599453f : -INFINITY;
    }
  }
}

template <typename T>
int run_for(const Call& call) {
  switch (call.dim) {
    case 16: run<T, 1>(call); return 0;
    case 32: run<T, 2>(call); return 0;
    case 64: run<T, 4>(call); return 0;
    case 80: run<T, 5>(call); return 0;
    case 96: run<T, 6>(call); return 0;
    case 128: run<T, 8>(call); return 0;
    case 256: run<T, 16>(call); return 0;
  }
  return 2;
}

}  // namespace

extern "C" int kvbench_sparse_decode(
    const float* q, float* out, float* lse, const int64_t* table, int64_t jobs, int64_t group, int64_t dim,
    float scaling, int dtype) {
  if (group > MAX_GROUP) return 1;
  // table: nine rows of `jobs` entries in the order of Call
  const int64_t* row[9];
  for (int i = 0; i < 9; i++) row[i] = table + i * jobs;
  Call call{q, out, lse, row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], jobs, group, dim, scaling};
  if (dtype == 0) return run_for<float>(call);
  if (dtype == 1) return run_for<BF16>(call);
  if (dtype == 2) return run_for<FP16>(call);
  return 3;
}
