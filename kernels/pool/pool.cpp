// Maximum or mean of the neighbourhood of every position.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../vectors.h"

namespace {

constexpr int AT_ONCE = 4;        // vectors of results that stay in registers
constexpr int64_t PIECE = 4096;   // results per piece of work

template <bool AVERAGE>
void piece(const float* row, float* out, int64_t length, int64_t kernel, int64_t low) {
  const int64_t count = std::min(PIECE, length - low), first = low - kernel / 2;
  const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + count + kernel - 1, length);
  // the neighbourhood, padded beyond the ends and to whole vectors with values that change no result
  std::vector<float> near(count + kernel + AT_ONCE * LANES, AVERAGE ? 0.f : -INFINITY);
  std::copy(row + begin, row + end, near.data() + (begin - first));
  for (int64_t t = 0; t < count; t += AT_ONCE * LANES) {
    Vec value[AT_ONCE];
    for (int v = 0; v < AT_ONCE; v++) value[v] = load(&near[t + v * LANES]);
    for (int64_t k = 1; k < kernel; k++)
      for (int v = 0; v < AT_ONCE; v++) {
        const Vec other = load(&near[t + k + v * LANES]);
        if (AVERAGE) value[v] += other;
        else value[v] = larger(other, value[v]);
      }
    float done[AT_ONCE * LANES];
    for (int v = 0; v < AT_ONCE; v++) {
      if (AVERAGE) value[v] /= (float)kernel;
      std::memcpy(done + v * LANES, &value[v], sizeof value[v]);
    }
    std::copy_n(done, std::min<int64_t>(AT_ONCE * LANES, count - t), out + low + t);
  }
}

}  // namespace

extern "C" void kvbench_pool(
    const float* scores, float* out, int64_t rows, int64_t length, int64_t step, int64_t kernel, int average) {
  const int64_t pieces = (length + PIECE - 1) / PIECE;
  #pragma omp parallel for schedule(dynamic, 1)
  for (int64_t n = 0; n < rows * pieces; n++) {
    const int64_t row = n / pieces, low = n % pieces * PIECE;
    const auto run = average ? piece<true> : piece<false>;
    run(scores + row * step, out + row * length, length, kernel, low);
  }
}
