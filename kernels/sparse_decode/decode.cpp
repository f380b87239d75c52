// Grouped-query decode attention over ragged slot lists, split into fixed pieces that are merged by their
// log-sum-exp. One job is one (row, KV head): its keys and values lie in a prefix (shared or owned) followed by a
// tail of appended tokens. The split does not depend on the number of threads, so neither do the results.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "../vectors.h"

namespace {

constexpr int BLOCK = 64;    // slots whose scores are held at a time
constexpr int SPLIT = 512;   // slots per piece of work
constexpr int MAX_GROUP = 32;
constexpr float NEGATIVE = -3.0e38f;  // of a slot that is not read
constexpr float NOT_A_NUMBER = __builtin_nanf("");

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
  const int64_t* index;      // [jobs] addresses of int32 slot lists, 0: none; negative entries are skipped
  const int64_t* indexed;    // [jobs] length of the list, negative: no list, every slot is read
  const int64_t* mask;       // [jobs] addresses of uint8 [G, prefix], 0: no mask
  int64_t jobs, group, dim;
  float scaling;
};

// slots [low, high) of a job that has `slots`; low is a multiple of BLOCK, and so is high, or it is the end
struct Piece { int64_t job, low, high, slots; };

// the rows of some slots
template <typename T>
struct Block {
  int n;
  const T* keys[BLOCK];
  const T* values[BLOCK];
  int64_t slots[BLOCK];
};

// prefetches some quarters of a row into the second-level cache while another row is computed; the next block's rows are
// fetched evenly during this block, more at a time would wait for memory
template <typename T, int C>
inline void prefetch(const T* row, int from, int to) {
  constexpr int QUARTER = C * LANES * (int)sizeof(T) / 4;
  for (int c = from * QUARTER; c < to * QUARTER; c += 64) __builtin_prefetch((const char*)row + c, 0, 2);
}

// products of N queries with the block's keys, each loaded once for all queries; prefetches half of the next block's
// keys
template <typename T, int C, int N>
inline void dot_keys(const Block<T>& block, const Block<T>& next, const float* q, float (*scores)[BLOCK]) {
  Vec lanes[N][LANES];
  for (int low = 0; low < block.n; low += LANES) {
    const int high = std::min(low + LANES, block.n);
    for (int j = low; j < high; j++) {
      if (j < next.n) prefetch<T, C>(next.keys[j], 0, 2);
      Vec sum[N] = {};
      for (int c = 0; c < C; c++) {
        const Vec k = load(block.keys[j] + c * LANES);
        for (int g = 0; g < N; g++) sum[g] += load(q + (g * C + c) * LANES) * k;
      }
      for (int g = 0; g < N; g++) lanes[g][j - low] = sum[g];
    }
    for (int g = 0; g < N; g++) {
      for (int j = high - low; j < LANES; j++) lanes[g][j] = Vec{};
      const Vec dots = sum_lanes(lanes[g]);
      std::memcpy(scores[g] + low, &dots, sizeof dots);
    }
  }
}

#ifdef __AVX512BF16__
// the same for bf16 queries, whose products with bf16 keys are exact
template <typename T, int C, int N>
inline void dot_keys(const Block<T>& block, const Block<T>& next, const BF16* q, float (*scores)[BLOCK]) {
  Vec lanes[N][LANES];
  for (int low = 0; low < block.n; low += LANES) {
    const int high = std::min(low + LANES, block.n);
    for (int j = low; j < high; j++) {
      if (j < next.n) prefetch<T, C>(next.keys[j], 0, 2);
      __m512 sum[N];
      for (int g = 0; g < N; g++) sum[g] = _mm512_setzero_ps();
      for (int c = 0; c < C / 2; c++) {
        const __m512bh k = (__m512bh)_mm512_loadu_si512(block.keys[j] + c * 2 * LANES);
        for (int g = 0; g < N; g++)
          sum[g] = _mm512_dpbf16_ps(sum[g], k, (__m512bh)_mm512_loadu_si512(q + g * C * LANES + c * 2 * LANES));
      }
      for (int g = 0; g < N; g++) lanes[g][j - low] = (Vec)sum[g];
    }
    for (int g = 0; g < N; g++) {
      for (int j = high - low; j < LANES; j++) lanes[g][j] = Vec{};
      const Vec dots = sum_lanes(lanes[g]);
      std::memcpy(scores[g] + low, &dots, sizeof dots);
    }
  }
}
#endif

// whether sums hold 32 channels as the even ones followed by the odd ones: bf16 numbers are unpacked that way with half
// of the instructions
template <typename T, int C>
constexpr bool PAIRED = std::is_same_v<T, BF16> && C % 2 == 0;

// position of a channel in a sum of T values
template <typename T, int C>
inline int64_t place(int64_t d) {
  return PAIRED<T, C> ? d / 32 * 32 + d % 2 * LANES + d % 32 / 2 : d;
}

// adds the block's weighted values for N query heads; each value is loaded once for all heads, and rows are processed
// whole where their sums fit the registers: the processor prefetches such a stream by itself. Prefetches the rest of the
// next block.
template <typename T, int C, int N>
inline void add_values(const Block<T>& block, const Block<T>& next, const float (*weights)[BLOCK], float* partial) {
  constexpr int STEP = WIDTH == LANES ? std::min(C, 8) : C % 2 ? 1 : 2;
  for (int low = 0; low < C; low += STEP) {
    Vec sum[N][STEP];
    for (int g = 0; g < N; g++) for (int c = 0; c < STEP; c++) sum[g][c] = load(partial + (g * C + low + c) * LANES);
    for (int j = 0; j < block.n; j++) {
      if (j < next.n && low == 0) {
        prefetch<T, C>(next.keys[j], 2, 4);
        prefetch<T, C>(next.values[j], 0, 1);
      }
      if (j < next.n && low + STEP >= C) prefetch<T, C>(next.values[j], 1, 4);
      const T* v = block.values[j] + low * LANES;
      if constexpr (PAIRED<T, C>) {
        for (int c = 0; c < STEP; c += 2) {
          Vec even, odd;
          pair_to(even, odd, v + c * LANES);
          for (int g = 0; g < N; g++) {
            sum[g][c] += weights[g][j] * even;
            sum[g][c + 1] += weights[g][j] * odd;
          }
        }
      } else {
        for (int c = 0; c < STEP; c++) {
          const Vec x = load(v + c * LANES);
          for (int g = 0; g < N; g++) sum[g][c] += weights[g][j] * x;
        }
      }
    }
    for (int g = 0; g < N; g++)
      for (int c = 0; c < STEP; c++) std::memcpy(partial + (g * C + low + c) * LANES, &sum[g][c], sizeof(Vec));
  }
}

// converts the block's products to weights, and rescales the head's sums so far
template <typename T>
inline void weigh(const Block<T>& block, const uint8_t* mask, int64_t prefix, float log2_scale, float* s, float& peak,
                  float& total, float* partial, int64_t dim) {
  const int padded = (block.n + LANES - 1) / LANES * LANES;
  for (int j = 0; j < padded; j += LANES) {
    const Vec x = load(s + j) * log2_scale;
    // minus infinity comes of numbers that are not finite, and would read as a slot that is not read
    store(s + j, if_at_most(x, NEGATIVE, Vec{} + NOT_A_NUMBER, x));
  }
  if (mask) for (int j = 0; j < block.n; j++) if (block.slots[j] < prefix && !mask[block.slots[j]]) s[j] = NEGATIVE;
  for (int j = block.n; j < padded; j++) s[j] = NEGATIVE;
  Vec best = Vec{} + NEGATIVE;
  for (int j = 0; j < padded; j += LANES) {
    best = larger(load(s + j), best);
  }
  float top = peak;
  for (int i = 0; i < LANES; i++) top = std::max(top, best[i]);
  if (top == NEGATIVE) {
    // nothing to read, or NaN alone, which no maximum shows
    bool nan = false;
    for (int j = 0; j < padded; j++) nan |= s[j] != s[j];
    if (!nan) {
      std::memset(s, 0, sizeof(float) * padded);
      return;
    }
    top = 0.f;
  }
  Vec sum = Vec{};
  for (int j = 0; j < padded; j += LANES) {
    const Vec x = load(s + j);
    const Vec weight = if_equal(x, NEGATIVE, Vec{}, exp2_nonpositive(x - top));
    std::memcpy(s + j, &weight, sizeof weight);
    sum += weight;
  }
  const float rescale = peak == NEGATIVE ? 0.f : exp2f(peak - top);
  float mass = 0.f;
  for (int i = 0; i < LANES; i++) mass += sum[i];
  total = total * rescale + mass;
  peak = top;
  if (rescale == 1.f) return;
  for (int64_t d = 0; d < dim; d += LANES) {
    const Vec x = load(partial + d) * rescale;
    std::memcpy(partial + d, &x, sizeof x);
  }
}

// C = head dimension / LANES; q: [G, D]
template <typename T, int C, typename Q>
void attend(const Call& call, const Piece& piece, const Q* q, float* partial, float* peak, float* total) {
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
  alignas(64) float scores[MAX_GROUP][BLOCK];
  for (int64_t g = 0; g < G; g++) { peak[g] = NEGATIVE; total[g] = 0.f; }
  std::memset(partial, 0, sizeof(float) * G * D);

  auto fill = [&](Block<T>& block, int64_t low) {
    block.n = 0;
    // past the piece too: the thread of the next piece finds it in the cache
    const int64_t high = std::min<int64_t>(low + BLOCK, piece.slots);
    for (int64_t i = low; i < high; i++) {
      const int64_t slot = index ? index[i] : i;
      if (slot < 0) continue;
      block.keys[block.n] = slot < prefix ? kp + slot * D : kt + (slot - prefix) * D;
      block.values[block.n] = slot < prefix ? vp + slot * D : vt + (slot - prefix) * D;
      block.slots[block.n++] = slot;
    }
  };
  Block<T> blocks[2];
  fill(blocks[0], piece.low);
  for (int j = 0; index && j < blocks[0].n; j++) prefetch<T, C>(blocks[0].keys[j], 0, 4);
  for (int64_t low = piece.low, turn = 0; low < piece.high; low += BLOCK, turn ^= 1) {
    const Block<T>& block = blocks[turn];
    Block<T>& next = blocks[turn ^ 1];
    fill(next, low + BLOCK);
    int64_t g = 0;
    for (; g + 4 <= G; g += 4) dot_keys<T, C, 4>(block, next, q + g * D, scores + g);
    for (; g < G; g++) dot_keys<T, C, 1>(block, next, q + g * D, scores + g);
    for (g = 0; g < G; g++)
      weigh(block, mask ? mask + g * prefix : nullptr, prefix, log2_scale, scores[g], peak[g], total[g], partial + g * D, D);
    g = 0;
    constexpr int N = C > 4 ? 2 : 4;
    for (; g + N <= G; g += N) add_values<T, C, N>(block, next, scores + g, partial + g * D);
    for (; g < G; g++) add_values<T, C, 1>(block, next, scores + g, partial + g * D);
  }
}

template <typename T, int C, typename Q>
void run(const Call& call, const Q* q) {
  const int64_t G = call.group, D = C * LANES;
  std::vector<Piece> pieces;
  std::vector<int64_t> first(call.jobs + 1);
  for (int64_t job = 0; job < call.jobs; job++) {
    first[job] = (int64_t)pieces.size();
    const int64_t slots = call.indexed[job] >= 0 ? call.indexed[job] : call.prefix[job] + call.tail[job];
    for (int64_t low = 0; low < slots; low += SPLIT) pieces.push_back({job, low, std::min(slots, low + SPLIT), slots});
  }
  first[call.jobs] = (int64_t)pieces.size();
  const int64_t n = (int64_t)pieces.size();
  // not a std::vector, which would be zeroed first
  const std::unique_ptr<float[]> partial(new float[n * G * D]), peak(new float[n * G]), total(new float[n * G]);

  #pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < n; i++) {
    attend<T, C>(call, pieces[i], q + pieces[i].job * G * D, &partial[i * G * D], &peak[i * G], &total[i * G]);
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
        for (int64_t d = 0; d < D; d++) out[d] += weight * p[place<T, C>(d)];
      }
      if (sum != 0.f) for (int64_t d = 0; d < D; d++) out[d] /= sum;
      if (call.lse) call.lse[job * G + g] = sum != 0.f ? (top + std::log2(sum)) * 0.6931471805599453f : -INFINITY;
    }
  }
}

// uses bf16 products where the processor has them and the queries are bf16
template <typename T, int C>
void start(const Call& call) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, BF16> && C % 2 == 0) {
    const int64_t n = call.jobs * call.group * C * LANES;
    std::vector<BF16> q(n);
    bool exact = true;
    for (int64_t i = 0; i < n; i++) {
      uint32_t bits;
      std::memcpy(&bits, call.q + i, sizeof bits);
      exact &= !(bits & 0xffff);
      q[i].bits = (uint16_t)(bits >> 16);
    }
    if (exact) return run<T, C>(call, q.data());
  }
#endif
  run<T, C>(call, call.q);
}

template <typename T>
int run_for(const Call& call) {
  switch (call.dim) {
    case 16: start<T, 1>(call); return 0;
    case 32: start<T, 2>(call); return 0;
    case 64: start<T, 4>(call); return 0;
    case 80: start<T, 5>(call); return 0;
    case 96: start<T, 6>(call); return 0;
    case 128: start<T, 8>(call); return 0;
    case 256: start<T, 16>(call); return 0;
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

namespace {

// rows with the same layout: a table of their jobs
struct Rows {
  int64_t rows, heads, share, group, dim, prefix, tail, indexed;
  // address, bytes from row to row and from head to head; address 0: none
  struct Where { int64_t address, row, head; } k_prefix, v_prefix, k_tail, v_tail, index, mask;

  // `share` jobs of each KV head have lists and masks of their own, and share the rest
  std::vector<int64_t> table() const {
    const int64_t jobs = rows * heads * share;
    std::vector<int64_t> table(9 * jobs);
    for (int64_t job = 0; job < jobs; job++) {
      const int64_t row = job / (heads * share), own = job % (heads * share), head = own / share;
      auto at = [&](const Where& x, int64_t n) { return x.address ? x.address + row * x.row + n * x.head : 0; };
      const int64_t fields[9] = {at(k_prefix, head), at(v_prefix, head), prefix,  at(k_tail, head), at(v_tail, head),
                                 tail,               at(index, own),     indexed, at(mask, own)};
      for (int i = 0; i < 9; i++) table[i * jobs + job] = fields[i];
    }
    return table;
  }
};

template <typename Q>
int run_rows(const Q* q, Q* out, float* lse, const Rows& rows, float scaling, int dtype) {
  const int64_t jobs = rows.rows * rows.heads * rows.share, n = jobs * rows.group * rows.dim;
  std::vector<float> wide(n), sums(n);
  for (int64_t i = 0; i < n; i++) wide[i] = number(q[i]);
  const int code = kvbench_sparse_decode(
      wide.data(), sums.data(), lse, rows.table().data(), jobs, rows.group, rows.dim, scaling, dtype);
  for (int64_t i = 0; i < n; i++) put(sums[i], out + i);
  return code;
}

}  // namespace

// q and out are of q_dtype; `rows` as the struct Rows
extern "C" int kvbench_sparse_decode_rows(
    const void* q, void* out, float* lse, const int64_t* rows, float scaling, int q_dtype, int dtype) {
  Rows of;
  static_assert(sizeof of == 26 * sizeof(int64_t));
  std::memcpy(&of, rows, sizeof of);
  if (q_dtype == 0) return run_rows((const float*)q, (float*)out, lse, of, scaling, dtype);
  if (q_dtype == 1) return run_rows((const BF16*)q, (BF16*)out, lse, of, scaling, dtype);
  if (q_dtype == 2) return run_rows((const FP16*)q, (FP16*)out, lse, of, scaling, dtype);
  return 3;
}
