// Attention of the last queries of a prompt to every key, in two passes over the keys: the sums of exponentials first,
// then the probabilities, summed over the window. Logits are computed twice and never leave the cache. A vector holds
// queries, so that keys need no transposing and maxima no shuffling.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../vectors.h"

namespace {

constexpr int STEP = 2;             // vectors of queries at a time
constexpr int ROWS = STEP * LANES;  // queries at a time
constexpr int TOGETHER = 8;         // keys at a time; their TOGETHER * STEP sums stay in registers
constexpr int KEYS = 64;            // keys whose logits are kept
constexpr int64_t PIECE = 1024;     // keys per piece of work

struct Call {
  const float* q;  // [H, rows / ROWS, D, ROWS], scaled to logits of base 2; each query head's rows are `padded`
  const void* k;   // [H, T, D]
  float* out;      // [H, G, T]
  int64_t heads, group, window, padded, rows, dim, length, k_head;

  bool real(int64_t row) const { return row / padded < group && row % padded < window; }
};

inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

// some keys as fp32 numbers [KEYS, D]; missing ones are zero
template <typename T>
const float* numbers(const T* k, int64_t count, int64_t dim, float* tile) {
  int64_t n = 0;
  for (; n + LANES <= count * dim; n += LANES) store(tile + n, load(k + n));
  for (; n < count * dim; n++) tile[n] = number(k[n]);
  std::fill(tile + count * dim, tile + KEYS * dim, 0.f);
  return tile;
}
template <>
inline const float* numbers(const float* k, int64_t count, int64_t dim, float* tile) {
  if (count == KEYS) return k;
  std::copy(k, k + count * dim, tile);
  std::fill(tile + count * dim, tile + KEYS * dim, 0.f);
  return tile;
}

// logits [KEYS, ROWS] of ROWS queries; -inf where the key comes after the query or the prompt's end
inline void logits(const Call& call, int64_t head, int64_t row, const float* keys, int64_t low, float* s) {
  const float* q = call.q + (head * call.rows + row) * call.dim;
  for (int64_t j = 0; j < KEYS; j += TOGETHER) {
    Vec sum[TOGETHER][STEP] = {};
    const float* k = keys + j * call.dim;
    for (int64_t d = 0; d < call.dim; d++) {
      const Vec first = load(q + d * ROWS), second = load(q + d * ROWS + LANES);
      for (int i = 0; i < TOGETHER; i++) {
        sum[i][0] += first * k[i * call.dim + d];
        sum[i][1] += second * k[i * call.dim + d];
      }
    }
    for (int i = 0; i < TOGETHER; i++)
      for (int v = 0; v < STEP; v++) store(s + (j + i) * ROWS + v * LANES, sum[i][v]);
  }
  if (low + KEYS <= call.length - call.window + 1) return;
  for (int64_t r = 0; r < ROWS; r++) {
    const int64_t last = call.length - call.window + (row + r) % call.padded;
    for (int64_t j = 0; j < KEYS; j++) if (low + j > std::min(last, call.length - 1)) s[j * ROWS + r] = -INFINITY;
  }
}

// 2^x, 0 far below
inline Vec power(Vec x) {
  const Vec e = exp2_nonpositive(x);
  return x < -126.f ? Vec{} : e;
}

inline float sum(Vec x) {
  float lanes[LANES];
  store(lanes, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// log2 of the sum of exponentials of every row over one piece
template <typename T>
void sum_piece(const Call& call, int64_t head, int64_t low, int64_t high, float* lse) {
  const T* k = (const T*)call.k + head * call.k_head;
  std::vector<float> tile(call.dim * KEYS), peak(call.rows, -INFINITY), mass(call.rows, 0.f), s(KEYS * ROWS);
  for (int64_t t = low; t < high; t += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, call.length - t);
    const float* keys = numbers(k + t * call.dim, count, call.dim, tile.data());
    for (int64_t row = 0; row < call.rows; row += ROWS) {
      logits(call, head, row, keys, t, s.data());
      for (int v = 0; v < ROWS; v += LANES) {
        const Vec before = load(&peak[row + v]);
        Vec top = before;
        for (int j = 0; j < KEYS; j++) {
          const Vec x = load(&s[j * ROWS + v]);
          top = x > top ? x : top;
        }
        // a row without keys so far would subtract infinities
        const Vec base = top == -INFINITY ? Vec{} : top;
        Vec total = load(&mass[row + v]) * power(before - base);
        for (int j = 0; j < KEYS; j++) total += power(load(&s[j * ROWS + v]) - base);
        store(&peak[row + v], top);
        store(&mass[row + v], total);
      }
    }
  }
  for (int64_t row = 0; row < call.rows; row++) lse[row] = peak[row] + std::log2(mass[row]);
}

// probabilities of one piece's keys, summed over the window
template <typename T>
void score_piece(const Call& call, int64_t head, int64_t low, int64_t high, const float* lse) {
  const T* k = (const T*)call.k + head * call.k_head;
  std::vector<float> tile(call.dim * KEYS), s(KEYS * ROWS);
  std::vector<Vec> total(call.group * KEYS);
  for (int64_t t = low; t < high; t += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, call.length - t);
    const float* keys = numbers(k + t * call.dim, count, call.dim, tile.data());
    std::fill(total.begin(), total.end(), Vec{});
    for (int64_t row = 0; row < call.rows; row += ROWS) {
      logits(call, head, row, keys, t, s.data());
      for (int v = 0; v < ROWS && row + v < call.group * call.padded; v += LANES) {
        const Vec whole = load(&lse[row + v]);
        Vec* to = &total[(row + v) / call.padded * KEYS];
        for (int j = 0; j < KEYS; j++) to[j] += power(load(&s[j * ROWS + v]) - whole);
      }
    }
    for (int64_t g = 0; g < call.group; g++)
      for (int64_t j = 0; j < count; j++)
        call.out[(head * call.group + g) * call.length + t + j] = sum(total[g * KEYS + j]);
  }
}

template <typename T>
int run(const Call& call) {
  const int64_t pieces = (call.length + PIECE - 1) / PIECE;
  std::vector<float> part(call.heads * pieces * call.rows), lse(call.heads * call.rows);
  #pragma omp parallel
  {
    #pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < call.heads * pieces; n++) {
      const int64_t low = n % pieces * PIECE;
      sum_piece<T>(call, n / pieces, low, std::min(low + PIECE, call.length), &part[n * call.rows]);
    }
    #pragma omp for
    for (int64_t n = 0; n < call.heads * call.rows; n++) {
      const float* first = &part[n / call.rows * pieces * call.rows + n % call.rows];
      float top = -INFINITY, mass = 0.f;
      for (int64_t p = 0; p < pieces; p++) top = std::max(top, first[p * call.rows]);
      for (int64_t p = 0; p < pieces; p++) mass += exp2f(first[p * call.rows] - top);
      // padding of the vectors gets no attention
      lse[n] = call.real(n % call.rows) ? top + std::log2(mass) : INFINITY;
    }
    #pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < call.heads * pieces; n++) {
      const int64_t low = n % pieces * PIECE;
      score_piece<T>(call, n / pieces, low, std::min(low + PIECE, call.length), &lse[n / pieces * call.rows]);
    }
  }
  return 0;
}

}  // namespace

extern "C" int kvbench_window_scores(
    const float* q, const void* k, float* out, int64_t heads, int64_t group, int64_t window, int64_t padded,
    int64_t rows, int64_t dim, int64_t length, int64_t k_head, int dtype) {
  const Call call{q, k, out, heads, group, window, padded, rows, dim, length, k_head};
  if (dtype == 0) return run<float>(call);
  if (dtype == 1) return run<BF16>(call);
  if (dtype == 2) return run<FP16>(call);
  return 3;
}
