// Attention of the last queries of a prompt to every key. Logits are computed once and kept until the sums of
// exponentials are known: as many KV heads and rows at a time as `scratch` bytes hold. A vector holds queries, so that keys
// need no transposing and maxima no shuffling.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "../vectors.h"

namespace {

constexpr int ROWS = 2 * LANES;     // queries at a time
// vectors of queries and keys whose STEP * TOGETHER sums stay in registers
constexpr int STEP = WIDTH == LANES ? 2 : 1;
constexpr int TOGETHER = WIDTH == LANES ? 8 : 4;
constexpr int KEYS = 64;            // keys of a tile
constexpr int64_t PIECE = 1024;     // keys per piece of work

struct Call {
  const float* q;  // [H, rows / ROWS, D, ROWS], scaled to logits of base 2; each query head's rows are `padded`
  const void* k;   // [H, T, D]
  float* out;      // [H, G, T]
  int64_t heads, group, window, padded, rows, dim, length, k_head, scratch;

  bool real(int64_t row) const { return row / padded < group && row % padded < window; }
};

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
  for (int first = 0; first < ROWS; first += STEP * LANES) {
    for (int64_t j = 0; j < KEYS; j += TOGETHER) {
      Vec sum[TOGETHER][STEP] = {};
      const float* k = keys + j * call.dim;
      for (int64_t d = 0; d < call.dim; d++) {
        Vec x[STEP];
        for (int v = 0; v < STEP; v++) x[v] = load(q + d * ROWS + first + v * LANES);
        for (int i = 0; i < TOGETHER; i++)
          for (int v = 0; v < STEP; v++) sum[i][v] += x[v] * k[i * call.dim + d];
      }
      for (int i = 0; i < TOGETHER; i++)
        for (int v = 0; v < STEP; v++) store(s + (j + i) * ROWS + first + v * LANES, sum[i][v]);
    }
  }
  if (low + KEYS <= call.length - call.window + 1) return;
  for (int64_t r = 0; r < ROWS; r++) {
    const int64_t last = call.length - call.window + (row + r) % call.padded;
    for (int64_t j = 0; j < KEYS; j++) if (low + j > std::min(last, call.length - 1)) s[j * ROWS + r] = -INFINITY;
  }
}

// 2^x, 0 far below
inline Vec power(Vec x) {
  return if_below(x, -126.f, Vec{}, exp2_nonpositive(x));
}

inline float sum(Vec x) {
  float lanes[LANES];
  store(lanes, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// some rows of some heads, whose logits are held together: [heads, tiles of keys, rows / ROWS, KEYS, ROWS]
struct Held {
  int64_t first_head, heads, first_row, rows, tiles;
  float* memory;

  float* logits(int64_t head, int64_t t, int64_t row) const {
    return memory + (((head - first_head) * tiles + t / KEYS) * rows + row - first_row) * KEYS;
  }
};

// logits of one piece, and log2 of the sum of their exponentials for every row
template <typename T>
void sum_piece(const Call& call, const Held& held, int64_t head, int64_t low, int64_t high, float* lse) {
  const T* k = (const T*)call.k + head * call.k_head;
  std::vector<float> tile(call.dim * KEYS), peak(held.rows, -INFINITY), mass(held.rows, 0.f);
  for (int64_t t = low; t < high; t += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, call.length - t);
    const float* keys = numbers(k + t * call.dim, count, call.dim, tile.data());
    for (int64_t row = 0; row < held.rows; row += ROWS) {
      float* s = held.logits(head, t, held.first_row + row);
      logits(call, head, held.first_row + row, keys, t, s);
      for (int v = 0; v < ROWS; v += LANES) {
        const Vec before = load(&peak[row + v]);
        Vec top = before;
        for (int j = 0; j < KEYS; j++) top = larger(load(&s[j * ROWS + v]), top);
        // a row without keys so far would subtract infinities
        const Vec base = if_equal(top, -INFINITY, Vec{}, top);
        Vec total = load(&mass[row + v]) * power(before - base);
        for (int j = 0; j < KEYS; j++) total += power(load(&s[j * ROWS + v]) - base);
        store(&peak[row + v], top);
        store(&mass[row + v], total);
      }
    }
  }
  for (int64_t row = 0; row < held.rows; row++) lse[row] = peak[row] + std::log2(mass[row]);
}

// probabilities of one piece's keys, summed over the rows; added to those of earlier rows
template <typename T>
void score_piece(const Call& call, const Held& held, int64_t head, int64_t low, int64_t high, const float* lse) {
  std::vector<Vec> total(call.group * KEYS);
  const int64_t end = std::min(held.first_row + held.rows, call.group * call.padded);
  for (int64_t t = low; t < high; t += KEYS) {
    const int64_t count = std::min<int64_t>(KEYS, call.length - t);
    std::fill(total.begin(), total.end(), Vec{});
    for (int64_t row = held.first_row; row < end; row += LANES) {
      const float* s = held.logits(head, t, row / ROWS * ROWS) + row % ROWS;
      const Vec whole = load(lse + row - held.first_row);
      Vec* to = &total[row / call.padded * KEYS];
      for (int j = 0; j < KEYS; j++) to[j] += power(load(&s[j * ROWS]) - whole);
    }
    for (int64_t g = 0; g < call.group; g++) {
      float* out = call.out + (head * call.group + g) * call.length + t;
      for (int64_t j = 0; j < count; j++) out[j] = (held.first_row ? out[j] : 0.f) + sum(total[g * KEYS + j]);
    }
  }
}

template <typename T>
int run(const Call& call) {
  const int64_t pieces = (call.length + PIECE - 1) / PIECE, tiles = (call.length + KEYS - 1) / KEYS;
  const int64_t bytes = tiles * KEYS * ROWS * sizeof(float);
  const int64_t rows = std::min(call.rows, std::max<int64_t>(1, call.scratch / bytes) * ROWS);
  const int64_t heads = std::min(call.heads, std::max<int64_t>(1, call.scratch / (bytes * (rows / ROWS))));
  // not std::vectors, which would be zeroed first
  const std::unique_ptr<float[]> memory(new float[heads * rows * tiles * KEYS]), sums(new float[heads * pieces * rows]);
  const std::unique_ptr<float[]> lse(new float[heads * rows]);
  for (int64_t head = 0; head < call.heads; head += heads) {
    for (int64_t row = 0; row < call.rows; row += rows) {
      const Held now{head, std::min(heads, call.heads - head), row, std::min(rows, call.rows - row), tiles, memory.get()};
      #pragma omp parallel
      {
        #pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < now.heads * pieces; n++) {
          const int64_t low = n % pieces * PIECE, high = std::min(low + PIECE, call.length);
          sum_piece<T>(call, now, head + n / pieces, low, high, &sums[n * now.rows]);
        }
        #pragma omp for
        for (int64_t n = 0; n < now.heads * now.rows; n++) {
          const float* first = &sums[n / now.rows * pieces * now.rows + n % now.rows];
          float top = -INFINITY, mass = 0.f;
          for (int64_t p = 0; p < pieces; p++) top = std::max(top, first[p * now.rows]);
          for (int64_t p = 0; p < pieces; p++) mass += exp2f(first[p * now.rows] - top);
          // padding of the vectors gets no attention
          lse[n] = call.real(row + n % now.rows) ? top + std::log2(mass) : INFINITY;
        }
        #pragma omp for schedule(dynamic, 1)
        for (int64_t n = 0; n < now.heads * pieces; n++) {
          const int64_t low = n % pieces * PIECE, high = std::min(low + PIECE, call.length);
          score_piece<T>(call, now, head + n / pieces, low, high, &lse[n / pieces * now.rows]);
        }
      }
    }
  }
  return 0;
}

}  // namespace

extern "C" int kvbench_window_scores(
    const float* q, const void* k, float* out, int64_t heads, int64_t group, int64_t window, int64_t padded,
    int64_t rows, int64_t dim, int64_t length, int64_t k_head, int64_t scratch, int dtype) {
  const Call call{q, k, out, heads, group, window, padded, rows, dim, length, k_head, scratch};
  if (dtype == 0) return run<float>(call);
  if (dtype == 1) return run<BF16>(call);
  if (dtype == 2) return run<FP16>(call);
  return 3;
}
