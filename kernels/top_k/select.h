// Exact selection: the highest scores, equal ones in their order. NaN ranks as infinity, so that what it came from is read
// and seen.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int DIGIT = 11;  // leading bits by which scores are sorted first

// numbers in the order of scores
inline uint32_t ordered(float score) {
  const float x = score != score ? INFINITY : score + 0.f;  // minus zero ties with zero
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// the same with a position, the earlier of equal scores higher: no two are equal
inline uint64_t ranked(uint32_t order, int64_t at) { return (uint64_t)order << 32 | (0xffffffffu - (uint32_t)at); }

// rank of the k-th highest of some scores, 0 < k <= their number; only those with its leading bits are sorted further
inline uint64_t kth_highest(const std::vector<uint32_t>& order, int64_t k) {
  const int64_t count = (int64_t)order.size();
  std::vector<int32_t> with(1 << DIGIT, 0);
  for (const uint32_t x : order) with[x >> (32 - DIGIT)]++;
  uint32_t digit = (1 << DIGIT) - 1;
  while (with[digit] < k) k -= with[digit--];
  std::vector<uint64_t> tied(with[digit] + 1);
  int64_t held = 0;
  for (int64_t n = 0; n < count; n++) {
    tied[held] = ranked(order[n], n);
    held += order[n] >> (32 - DIGIT) == digit && held < with[digit];
  }
  std::nth_element(tied.begin(), tied.begin() + (k - 1), tied.begin() + held, std::greater<uint64_t>());
  return tied[k - 1];
}

inline std::vector<uint32_t> orders(const float* scores, int64_t count) {
  std::vector<uint32_t> order(count);
  for (int64_t n = 0; n < count; n++) order[n] = ordered(scores[n]);
  return order;
}

// the tokens of the pages of highest score, up to `tokens`, ascending and padded with -1; the last page may hold fewer than
// the others, and the last one taken is cut to its first tokens
inline void select_tokens(const float* scores, int32_t* to, int64_t pages, int64_t page, int64_t length, int64_t tokens) {
  const int64_t used = std::min(pages, (length + page - 1) / page);
  const int64_t enough = std::min(used, (tokens + page - 1) / page + (page > 1));
  int64_t left = tokens;
  if (enough > 0) {
    const std::vector<uint32_t> order = orders(scores, used);
    const uint64_t last = kth_highest(order, enough);
    std::vector<uint64_t> taken;
    taken.reserve(enough);
    for (int64_t p = 0; p < used; p++) if (ranked(order[p], p) >= last) taken.push_back(ranked(order[p], p));
    // only pages of lowest rank can be cut: the last two, or three with the partial page
    std::vector<uint64_t> lowest(std::min<int64_t>(3, enough));
    std::partial_sort_copy(taken.begin(), taken.end(), lowest.begin(), lowest.end());
    const auto held = [&](uint64_t rank) { return std::min(page, length - (int64_t)(0xffffffffu - (uint32_t)rank) * page); };
    for (const uint64_t rank : taken) left -= rank > lowest.back() ? held(rank) : 0;
    int64_t given[3] = {};
    for (int64_t n = (int64_t)lowest.size() - 1; n >= 0; n--) left -= given[n] = std::min(left, held(lowest[n]));
    for (const uint64_t rank : taken) {
      int64_t give = held(rank);
      for (size_t n = 0; n < lowest.size(); n++) if (rank == lowest[n]) give = given[n];
      const int32_t first = (int32_t)((int64_t)(0xffffffffu - (uint32_t)rank) * page);
      for (int32_t n = 0; n < give; n++) *to++ = first + n;
    }
  }
  std::fill(to, to + left, -1);
}

}  // namespace
