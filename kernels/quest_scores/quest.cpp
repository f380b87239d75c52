// Quest's bounds of pages, and the slots of the pages with the highest ones. One job is one (row, KV head).
#include <type_traits>

#include "../top_k/select.h"
#include "../vectors.h"

namespace {

struct Call {
  const float* q;  // [jobs, G, D]
  const void *low, *high;  // [rows, H, P, D], with contiguous channels
  int64_t rows, heads, group, dim, pages, row_step, head_step, page_step;
};

// bounds of N query heads for `count` pages, each edge loaded once for all heads; up and down are the positive and the
// negative part of the queries [N, D]. Both products are taken, so that NaN in either edge stays.
template <typename T, int N>
void score(const T* low, const T* high, int64_t step, int64_t count, const float* up, const float* down, int64_t dim,
           float* out, int64_t stride) {
  const int64_t whole = dim / LANES * LANES;
  Vec lanes[N][LANES];
  for (int64_t first = 0; first < count; first += LANES) {
    const int64_t here = std::min<int64_t>(LANES, count - first);
    for (int64_t j = 0; j < here; j++) {
      const T *l = low + (first + j) * step, *h = high + (first + j) * step;
      Vec sum[N] = {};
      for (int64_t d = 0; d < whole; d += LANES) {
        const Vec most = load(h + d), least = load(l + d);
        for (int g = 0; g < N; g++) sum[g] += load(up + g * dim + d) * most + load(down + g * dim + d) * least;
      }
      for (int g = 0; g < N; g++) lanes[g][j] = sum[g];
    }
    for (int g = 0; g < N; g++) {
      for (int64_t j = here; j < LANES; j++) lanes[g][j] = Vec{};
      float sums[LANES];
      store(sums, sum_lanes(lanes[g]));
      for (int64_t j = 0; j < here; j++) {
        const T *l = low + (first + j) * step, *h = high + (first + j) * step;
        for (int64_t d = whole; d < dim; d++) sums[j] += up[g * dim + d] * number(h[d]) + down[g * dim + d] * number(l[d]);
        out[g * stride + first + j] = sums[j];
      }
    }
  }
}

template <typename T>
void job_scores(const Call& call, int64_t job, int64_t count, float* out, int64_t stride) {
  const int64_t size = call.group * call.dim, at = job / call.heads * call.row_step + job % call.heads * call.head_step;
  const T *low = (const T*)call.low + at, *high = (const T*)call.high + at;
  std::vector<float> up(size), down(size);
  for (int64_t i = 0; i < size; i++) {
    const float x = call.q[job * size + i];
    up[i] = x < 0 ? 0.f : x;
    down[i] = x > 0 ? 0.f : x;
  }
  int64_t g = 0;
  const auto from = [&](int64_t first) { return first * call.dim; };
  for (; g + 3 <= call.group; g += 3)
    score<T, 3>(low, high, call.page_step, count, &up[from(g)], &down[from(g)], call.dim, out + g * stride, stride);
  for (; g < call.group; g++)
    score<T, 1>(low, high, call.page_step, count, &up[from(g)], &down[from(g)], call.dim, out + g * stride, stride);
}

// slots [jobs, N], or [jobs, G, N] per query head: whole pages, the newest among them, ascending; -1 beyond the length
template <typename T>
void job_slots(const Call& call, int64_t job, int64_t page, int64_t length, int64_t chosen, bool per_head, int32_t* out) {
  const int64_t used = std::min(call.pages, (length + page - 1) / page), lists = per_head ? call.group : 1;
  std::vector<float> scores(call.group * used);
  job_scores<T>(call, job, used, scores.data(), used);
  for (int64_t g = 1; !per_head && g < call.group; g++)
    for (int64_t p = 0; p < used; p++) scores[p] += scores[g * used + p];
  std::vector<int32_t> pages(chosen);
  for (int64_t list = 0; list < lists; list++) {
    if (used) scores[list * used + used - 1] = INFINITY;
    select_tokens(&scores[list * used], pages.data(), used, 1, used, chosen);
    int32_t* to = out + (job * lists + list) * chosen * page;
    for (const int32_t p : pages)
      for (int64_t n = 0; n < page; n++) *to++ = p >= 0 && p * page + n < length ? (int32_t)(p * page + n) : -1;
  }
}

template <typename F>
int each_type(int dtype, int64_t jobs, const F& run) {
  if (dtype < 0 || dtype > 2) return 3;
  #pragma omp parallel for schedule(static)
  for (int64_t job = 0; job < jobs; job++) {
    if (dtype == 0) run(job, (float*)nullptr);
    if (dtype == 1) run(job, (BF16*)nullptr);
    if (dtype == 2) run(job, (FP16*)nullptr);
  }
  return 0;
}

}  // namespace

extern "C" int kvbench_quest_scores(
    const float* q, const void* low, const void* high, float* out, int64_t rows, int64_t heads, int64_t group, int64_t dim,
    int64_t pages, int64_t row_step, int64_t head_step, int64_t page_step, int dtype) {
  const Call call{q, low, high, rows, heads, group, dim, pages, row_step, head_step, page_step};
  return each_type(dtype, rows * heads, [&](int64_t job, auto* type) {
    job_scores<std::remove_pointer_t<decltype(type)>>(call, job, pages, out + job * group * pages, pages);
  });
}

extern "C" int kvbench_quest_select(
    const float* q, const void* low, const void* high, int32_t* out, int64_t rows, int64_t heads, int64_t group, int64_t dim,
    int64_t pages, int64_t row_step, int64_t head_step, int64_t page_step, int64_t page, int64_t length, int64_t chosen,
    int per_head, int dtype) {
  const Call call{q, low, high, rows, heads, group, dim, pages, row_step, head_step, page_step};
  return each_type(dtype, rows * heads, [&](int64_t job, auto* type) {
    job_slots<std::remove_pointer_t<decltype(type)>>(call, job, page, length, chosen, per_head, out);
  });
}
