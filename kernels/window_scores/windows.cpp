// Attention of the last queries of a prompt to every key, in two passes over the keys: the sums of exponentials first,
// then the probabilities, summed over the window. Logits are computed twice and never leave the cache.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../vectors.h"

namespace {

constexpr int STEP = 4;              // vectors of keys at a time
constexpr int KEYS = STEP * LANES;
constexpr int ROWS = 4;              // queries at a time; their ROWS * STEP sums stay in registers
constexpr int64_t PIECE = 1024;      // keys per piece of work

struct Call {
  const float* q;  // [H, rows, D], scaled to logits of base 2; rows padded to a multiple of ROWS
  const void* k;   // [H, T, D]
  float* out;      // [H, G, T]
  int64_t heads, group, window, rows, dim, length, k_head;
};

// the tile's keys, channel by channel: [D, KEYS]; missing keys are zero
template <typename T>
void transpose(const T* k, int64_t count, int64_t dim, float* tile) {
  for (int64_t j = 0; j < KEYS; j++)
    for (int64_t d = 0; d < dim; d++) tile[d * KEYS + j] = j < count ? number(k[j * dim + d]) : 0.f;
}

// logits of ROWS queries; -inf where the key comes after the query or the prompt's end
inline void logits(const Call& call, const float* q, const float* tile, int64_t row, int64_t low, Vec (&s)[ROWS][STEP]) {
  for (auto& r : s) for (Vec& x : r) x = Vec{};
  for (int64_t d = 0; d < call.dim; d++) {
    for (int i = 0; i < STEP; i++) {
      const Vec k = load(tile + d * KEYS + i * LANES);
      for (int r = 0; r < ROWS; r++) s[r][i] += q[r * call.dim + d] * k;
    }
  }
  if (low + KEYS <= call.length - call.window + 1) return;
  for (int r = 0; r < ROWS; r++) {
    const int64_t last = call.length - call.window + (row + r) % call.window;
    for (int j = 0; j < KEYS; j++) if (low + j > last) s[r][j / LANES][j % LANES] = -INFINITY;
  }
}

inline float highest(const Vec (&s)[STEP]) {
  Vec best = s[0];
  for (int i = 1; i < STEP; i++) best = s[i] > best ? s[i] : best;
  float top = best[0];
  for (int j = 1; j < LANES; j++) top = std::max(top, best[j]);
  return top;
}

inline float sum(Vec x) {
  float total = 0.f;
  for (int j = 0; j < LANES; j++) total += x[j];
  return total;
}

// log2 of the sum of exponentials of every row over one piece
template <typename T>
void sum_piece(const Call& call, int64_t head, int64_t low, int64_t high, float* lse) {
  const T* k = (const T*)call.k + head * call.k_head;
  const float* q = call.q + head * call.rows * call.dim;
  std::vector<float> tile(call.dim * KEYS), peak(call.rows, -INFINITY), mass(call.rows, 0.f);
  Vec s[ROWS][STEP];
  for (int64_t t = low; t < high; t += KEYS) {
    transpose(k + t * call.dim, std::min<int64_t>(KEYS, call.length - t), call.dim, tile.data());
    for (int64_t row = 0; row < call.rows; row += ROWS) {
      logits(call, q + row * call.dim, tile.data(), row, t, s);
      for (int r = 0; r < ROWS; r++) {
        const float top = std::max(peak[row + r], highest(s[r]));
        if (top == -INFINITY) continue;
        Vec total = Vec{};
        for (int i = 0; i < STEP; i++) total += s[r][i] == -INFINITY ? Vec{} : exp2_nonpositive(s[r][i] - top);
        mass[row + r] = mass[row + r] * exp2f(peak[row + r] - top) + sum(total);
        peak[row + r] = top;
      }
    }
  }
  for (int64_t row = 0; row < call.rows; row++) lse[row] = peak[row] + std::log2(mass[row]);
}

// probabilities of one piece's keys, summed over the window
template <typename T>
void score_piece(const Call& call, int64_t head, int64_t low, int64_t high, const float* lse) {
  const T* k = (const T*)call.k + head * call.k_head;
  const float* q = call.q + head * call.rows * call.dim;
  std::vector<float> tile(call.dim * KEYS);
  std::vector<Vec> total(call.group * STEP);
  Vec s[ROWS][STEP];
  for (int64_t t = low; t < high; t += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, call.length - t);
    transpose(k + t * call.dim, count, call.dim, tile.data());
    std::fill(total.begin(), total.end(), Vec{});
    for (int64_t row = 0; row < call.rows; row += ROWS) {
      logits(call, q + row * call.dim, tile.data(), row, t, s);
      for (int64_t r = 0; r < ROWS && row + r < call.group * call.window; r++) {
        Vec* to = &total[(row + r) / call.window * STEP];
        for (int i = 0; i < STEP; i++) {
          const Vec x = s[r][i] - lse[row + r];
          to[i] += x == -INFINITY ? Vec{} : exp2_nonpositive(x);
        }
      }
    }
    for (int64_t g = 0; g < call.group; g++)
      std::memcpy(call.out + (head * call.group + g) * call.length + t, &total[g * STEP], count * sizeof(float));
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
      lse[n] = top + std::log2(mass);
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
    const float* q, const void* k, float* out, int64_t heads, int64_t group, int64_t window, int64_t rows, int64_t dim,
    int64_t length, int64_t k_head, int dtype) {
  const Call call{q, k, out, heads, group, window, rows, dim, length, k_head};
  if (dtype == 0) return run<float>(call);
  if (dtype == 1) return run<BF16>(call);
  if (dtype == 2) return run<FP16>(call);
  return 3;
}
