// The tokens of the pages of highest score, up to a count; equal pages in their order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

extern "C" void kvbench_select_tokens(
    const float* scores, int32_t* out, int64_t jobs, int64_t pages, int64_t page, int64_t length, int64_t tokens) {
  const int64_t used = std::min(pages, (length + page - 1) / page);
  // the last page may hold fewer tokens than the others
  const int64_t enough = std::min(used, (tokens + page - 1) / page + 1);
  #pragma omp parallel for schedule(dynamic, 1)
  for (int64_t job = 0; job < jobs; job++) {
    // NaN ranks first, so that what it came from is read and seen; it has no order of its own
    std::vector<float> score(scores + job * pages, scores + job * pages + used);
    for (float& x : score) if (x != x) x = INFINITY;
    int32_t* to = out + job * tokens;
    std::vector<int32_t> order(used);
    std::iota(order.begin(), order.end(), 0);
    auto before = [&](int32_t a, int32_t b) { return score[a] > score[b] || (score[a] == score[b] && a < b); };
    if (enough < used) std::nth_element(order.begin(), order.begin() + enough, order.end(), before);
    order.resize(enough);
    // only the pages of lowest score can be cut: the last two, or three with the partial page
    const int64_t certain = std::max<int64_t>(0, enough - 3);
    std::nth_element(order.begin(), order.begin() + certain, order.end(), before);
    std::sort(order.begin() + certain, order.end(), before);
    int64_t left = tokens;
    std::vector<std::pair<int32_t, int32_t>> taken;
    for (int32_t p : order) {
      const int64_t give = std::min({left, page, length - p * page});
      if (give <= 0) break;
      taken.push_back({p, (int32_t)give});
      left -= give;
    }
    std::sort(taken.begin(), taken.end());
    for (const auto& [p, give] : taken) for (int32_t n = 0; n < give; n++) *to++ = (int32_t)(p * page + n);
    std::fill(to, to + left, -1);
  }
}
