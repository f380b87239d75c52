// Page probabilities of hybrid sparse attention: channel choice, logits of the chosen channels, softmax over tokens,
// mean over the group; then the tokens of the most probable pages, if asked for. One job is one (row, KV head).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../top_k/select.h"
#include "../vectors.h"

namespace {

constexpr int STEP = WIDTH == LANES ? 4 : 1;  // vectors of pages whose logits stay in registers

struct Call {
  const float* q;      // [jobs, G, D]
  const void* bounds;  // [jobs, edges, pages]
  float* out;          // [jobs, pages], or null
  int32_t* slots;      // [jobs, tokens] of the most probable pages, or null
  int64_t jobs, group, dim, edges, pages, channels, page, length, tokens;
};

// logits of N query heads for the pages of STEP vectors; each bound is loaded once for all heads
template <typename T, int N>
inline void add_channels(const T* const* rows, const float* weights, int64_t channels, int64_t at, float* logits,
                         int64_t stride) {
  Vec sum[N][STEP] = {};
  for (int64_t c = 0; c < channels; c++) {
    for (int i = 0; i < STEP; i++) {
      __builtin_prefetch((const char*)(rows[c] + at + STEP * LANES) + 64 * i);
      const Vec bound = load(rows[c] + at + i * LANES);
      for (int g = 0; g < N; g++) sum[g][i] += weights[g * channels + c] * bound;
    }
  }
  for (int g = 0; g < N; g++)
    for (int i = 0; i < STEP; i++) std::memcpy(logits + g * stride + at + i * LANES, &sum[g][i], sizeof(Vec));
}

template <typename T>
void score(const Call& call, int64_t job) {
  const int64_t G = call.group, D = call.dim, C = call.channels, P = call.pages;
  const float* q = call.q + job * G * D;
  const T* bounds = (const T*)call.bounds + job * call.edges * P;
  std::vector<float> size(D, 0.f), sum(D, 0.f), weights(G * C);
  for (int64_t g = 0; g < G; g++) {
    for (int64_t d = 0; d < D; d++) {
      size[d] += std::fabs(q[g * D + d]);
      sum[d] += q[g * D + d];
    }
  }
  std::vector<int64_t> order(D);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + C, order.end(), [&](int64_t a, int64_t b) {
    return size[a] > size[b] || (size[a] == size[b] && a < b);
  });
  std::vector<const T*> rows(C);
  for (int64_t c = 0; c < C; c++)
    rows[c] = bounds + (order[c] + (call.edges > D && sum[order[c]] > 0 ? D : 0)) * P;
  for (int64_t g = 0; g < G; g++) {
    float chosen = 0.f, all = 0.f;
    for (int64_t d = 0; d < D; d++) all += std::fabs(q[g * D + d]);
    for (int64_t c = 0; c < C; c++) chosen += std::fabs(q[g * D + order[c]]);
    const float factor = chosen > 0 ? 1.4426950408889634f / std::sqrt((float)D * chosen / all) : 0.f;
    for (int64_t c = 0; c < C; c++) weights[g * C + c] = q[g * D + order[c]] * factor;
  }

  const int64_t used = std::min(P, (call.length + call.page - 1) / call.page);
  const int64_t held = call.length - (used - 1) * call.page;  // tokens in the last page
  const int64_t whole = used / (STEP * LANES) * (STEP * LANES), stride = (used + LANES - 1) / LANES * LANES;
  std::vector<float> logits(G * stride, 0.f);
  int64_t g = 0;
  for (; g + 4 <= G; g += 4)
    for (int64_t p = 0; p < whole; p += STEP * LANES)
      add_channels<T, 4>(rows.data(), &weights[g * C], C, p, &logits[g * stride], stride);
  for (; g < G; g++)
    for (int64_t p = 0; p < whole; p += STEP * LANES)
      add_channels<T, 1>(rows.data(), &weights[g * C], C, p, &logits[g * stride], stride);
  for (g = 0; g < G; g++)
    for (int64_t c = 0; c < C; c++)
      for (int64_t p = whole; p < used; p++) logits[g * stride + p] += weights[g * C + c] * number(rows[c][p]);

  std::vector<float> mean(stride, 0.f);
  for (g = 0; g < G; g++) {
    float* x = &logits[g * stride];
    const float top = used ? *std::max_element(x, x + used) : 0.f;
    Vec total = Vec{};
    std::fill(x + used, x + stride, -INFINITY);
    for (int64_t p = 0; p < stride; p += LANES) {
      const Vec e = exp2_nonpositive(load(x + p) - top);
      std::memcpy(x + p, &e, sizeof e);
      total += p + LANES <= used ? e : Vec{};
    }
    double mass = 0;
    for (int i = 0; i < LANES; i++) mass += total[i];
    for (int64_t p = used / LANES * LANES; p < used; p++) mass += x[p];
    if (used) mass = mass * call.page - (double)(call.page - held) * x[used - 1];
    const float share = (float)(1 / (mass * G));
    for (int64_t p = 0; p < stride; p += LANES) {
      const Vec m = load(&mean[p]) + load(x + p) * share;
      std::memcpy(&mean[p], &m, sizeof m);
    }
  }
  if (call.out) {
    std::copy(mean.begin(), mean.begin() + used, call.out + job * P);
    std::fill(call.out + job * P + used, call.out + job * P + P, 0.f);
  }
  if (call.slots)
    select_tokens(mean.data(), call.slots + job * call.tokens, P, call.page, call.length, call.tokens);
}

template <typename T>
int run(const Call& call) {
  #pragma omp parallel for schedule(dynamic, 1)
  for (int64_t job = 0; job < call.jobs; job++) score<T>(call, job);
  return 0;
}

}  // namespace

extern "C" int kvbench_hsa_scores(
    const float* q, const void* bounds, float* out, int32_t* slots, int64_t jobs, int64_t group, int64_t dim, int64_t edges,
    int64_t pages, int64_t channels, int64_t page, int64_t length, int64_t tokens, int dtype) {
  const Call call{q, bounds, out, slots, jobs, group, dim, edges, pages, channels, page, length, tokens};
  if (dtype == 0) return run<float>(call);
  if (dtype == 1) return run<BF16>(call);
  if (dtype == 2) return run<FP16>(call);
  return 3;
}
