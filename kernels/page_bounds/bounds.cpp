// Channel-wise minimum and maximum of pages of keys. NaN stays: neither edge of a page that holds one is a number.
#include <type_traits>

#include "../vectors.h"

namespace {

inline float lower(float low, float x) { return x < low || x != x ? x : low; }
inline float higher(float high, float x) { return x > high || x != x ? x : high; }

template <typename T>
void build(const T* k, T* low, T* high, int64_t jobs, int64_t heads, int64_t length, int64_t page, int64_t pages,
           int64_t dim, int64_t k_row, int64_t k_head) {
  #pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < jobs * pages; n++) {
    const int64_t job = n / pages, first = n % pages * page;
    const T* keys = k + job / heads * k_row + job % heads * k_head;
    for (int64_t from = 0; from < dim; from += LANES) {
      const int64_t count = dim - from < LANES ? dim - from : LANES;
      Vec low_edge = Vec{} + __builtin_inff(), high_edge = Vec{} - __builtin_inff();
      for (int64_t t = first; t < first + page && t < length; t++) {
        const T* key = keys + t * dim + from;
        float rest[LANES] = {};
        for (int i = 0; count < LANES && i < count; i++) rest[i] = number(key[i]);
        const Vec x = count < LANES ? load(rest) : load(key);
        low_edge = smaller_or_nan(x, low_edge);
        high_edge = larger_or_nan(x, high_edge);
      }
      float least[LANES], most[LANES];
      store(least, low_edge);
      store(most, high_edge);
      for (int64_t i = 0; i < count; i++) {
        put(least[i], low + n * dim + from + i);
        put(most[i], high + n * dim + from + i);
      }
    }
  }
}

template <typename T>
void widen(T* low, T* high, const T* k, int64_t rows, int64_t heads, int64_t dim, int64_t page, const int64_t* strides) {
  // of low and high: row, head, page, channel; of k: row, head, channel
  const int64_t *at_low = strides, *at_high = strides + 4, *at_key = strides + 8;
  for (int64_t row = 0; row < rows; row++)
    for (int64_t head = 0; head < heads; head++)
      for (int64_t d = 0; d < dim; d++) {
        const float x = number(k[row * at_key[0] + head * at_key[1] + d * at_key[2]]);
        T* least = low + row * at_low[0] + head * at_low[1] + page * at_low[2] + d * at_low[3];
        T* most = high + row * at_high[0] + head * at_high[1] + page * at_high[2] + d * at_high[3];
        put(lower(number(*least), x), least);
        put(higher(number(*most), x), most);
      }
}

}  // namespace

extern "C" int kvbench_page_bounds(
    const void* k, void* low, void* high, int64_t jobs, int64_t heads, int64_t length, int64_t page, int64_t pages,
    int64_t dim, int64_t k_row, int64_t k_head, int dtype) {
  const auto run = [&](auto* keys) {
    typedef std::remove_const_t<std::remove_pointer_t<decltype(keys)>> T;
    build<T>(keys, (T*)low, (T*)high, jobs, heads, length, page, pages, dim, k_row, k_head);
    return 0;
  };
  if (dtype == 0) return run((const float*)k);
  if (dtype == 1) return run((const BF16*)k);
  if (dtype == 2) return run((const FP16*)k);
  return 3;
}

extern "C" int kvbench_update_page_bounds(
    void* low, void* high, const void* k, const int64_t* strides, int64_t rows, int64_t heads, int64_t dim, int64_t page,
    int dtype) {
  if (dtype == 0) widen((float*)low, (float*)high, (const float*)k, rows, heads, dim, page, strides);
  else if (dtype == 1) widen((BF16*)low, (BF16*)high, (const BF16*)k, rows, heads, dim, page, strides);
  else if (dtype == 2) widen((FP16*)low, (FP16*)high, (const FP16*)k, rows, heads, dim, page, strides);
  else return 3;
  return 0;
}
