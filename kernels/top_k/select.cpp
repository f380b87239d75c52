// Selection in rows of scores: slots of pages, or masks.
#include "select.h"

extern "C" void kvbench_select_tokens(
    const float* scores, int32_t* out, int64_t jobs, int64_t pages, int64_t page, int64_t length, int64_t tokens) {
  #pragma omp parallel for schedule(dynamic, 1)
  for (int64_t job = 0; job < jobs; job++)
    select_tokens(scores + job * pages, out + job * tokens, pages, page, length, tokens);
}

// marks the k highest of each row, 0 < k < length
extern "C" void kvbench_top_k_mask(const float* scores, uint8_t* out, int64_t jobs, int64_t length, int64_t k) {
  #pragma omp parallel for schedule(dynamic, 1)
  for (int64_t job = 0; job < jobs; job++) {
    const float* row = scores + job * length;
    const std::vector<uint32_t> order = orders(row, length);
    const uint64_t last = kth_highest(order, k);
    for (int64_t n = 0; n < length; n++) out[job * length + n] = ranked(order[n], n) >= last;
  }
}
