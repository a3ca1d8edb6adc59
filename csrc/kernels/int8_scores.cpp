#include "kernels/int8_scores.h"

#include <algorithm>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "base/simd.h"

namespace placket {
namespace {

constexpr int64_t kStepBytes = kPanelItems * kPanelStep;

// The dimensions from `begin` on, a multiple of kPanelStep.
void pack_rest(const int8_t* const* items, int64_t count, int64_t begin, int64_t dims,
               int8_t* panel) {
  for (int64_t d = begin; d < dims; d += kPanelStep) {
    int8_t* to = panel + d * kPanelItems;
    std::memset(to, 0, kStepBytes);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * kPanelStep, items[i] + d, std::min(kPanelStep, dims - d));
    }
  }
}

void scores_portable(const uint8_t* query, int64_t padded, const int8_t* panel, int32_t* scores) {
  int32_t sums[kPanelItems] = {};
  for (int64_t d = 0; d < padded; d += kPanelStep, panel += kStepBytes) {
    for (int64_t i = 0; i < kPanelItems; ++i) {
      for (int64_t e = 0; e < kPanelStep; ++e) {
        sums[i] += query[d + e] * panel[i * kPanelStep + e];
      }
    }
  }
  std::copy_n(sums, kPanelItems, scores);
}

#ifdef __x86_64__
#define PLACKET_AVX2 __attribute__((target("avx2")))
#define PLACKET_UNROLL _Pragma("GCC unroll 8")  // GCC keeps arrays in registers only then

// Nine sums of 8 items each, of the 16 registers there are. Two products are added in 16 bits,
// where 2 * 127 * 128 has room.
constexpr int kTileQueries = 3;
constexpr int kVectors = kPanelItems / 8;

PLACKET_AVX2 void scores_avx2(const uint8_t* const* queries, int64_t padded, const int8_t* panel,
                              int32_t* const* scores) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kTileQueries][kVectors];
  const uint8_t* query[kTileQueries];
  PLACKET_UNROLL
  for (int q = 0; q < kTileQueries; ++q) {
    query[q] = queries[q];
    PLACKET_UNROLL
    for (int i = 0; i < kVectors; ++i) sums[q][i] = _mm256_setzero_si256();
  }
  for (int64_t d = 0; d < padded; d += kPanelStep, panel += kStepBytes) {
    __m256i items[kVectors];
    PLACKET_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      items[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel) + i);
    }
    PLACKET_UNROLL
    for (int q = 0; q < kTileQueries; ++q) {
      int32_t four;
      std::memcpy(&four, query[q] + d, sizeof four);
      const __m256i value = _mm256_set1_epi32(four);
      PLACKET_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        const __m256i pairs = _mm256_maddubs_epi16(value, items[i]);
        sums[q][i] = _mm256_add_epi32(sums[q][i], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  PLACKET_UNROLL
  for (int q = 0; q < kTileQueries; ++q) {
    PLACKET_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores[q]) + i, sums[q][i]);
    }
  }
}

// 32 dimensions of 8 items. `ahead` is where items lie that will be wanted next; the processor does
// not foresee so many at once.
PLACKET_AVX2 void transpose_avx2(const int8_t* const* items, int64_t d, int64_t ahead,
                                 int8_t* panel) {
  __m256i row[8], four[8];
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items[i] + d));
    _mm_prefetch(reinterpret_cast<const char*>(items[i] + d + ahead), _MM_HINT_T0);
  }
  for (int i = 0; i < 8; i += 4) {
    const __m256i a = _mm256_unpacklo_epi32(row[i], row[i + 1]);
    const __m256i b = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    const __m256i c = _mm256_unpacklo_epi32(row[i + 2], row[i + 3]);
    const __m256i e = _mm256_unpackhi_epi32(row[i + 2], row[i + 3]);
    four[i] = _mm256_unpacklo_epi64(a, c);
    four[i + 1] = _mm256_unpackhi_epi64(a, c);
    four[i + 2] = _mm256_unpacklo_epi64(b, e);
    four[i + 3] = _mm256_unpackhi_epi64(b, e);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + i * kStepBytes),
                        _mm256_permute2x128_si256(four[i], four[i + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + (i + 4) * kStepBytes),
                        _mm256_permute2x128_si256(four[i], four[i + 4], 0x31));
  }
}
#endif

}  // namespace

void pack_int8_panel(const int8_t* const* items, int64_t count, int64_t dims, int8_t* panel) {
#ifdef __x86_64__
  static const bool avx2 = __builtin_cpu_supports("avx2") > 0;
  if (avx2 && count == kPanelItems) {
    const int64_t done = dims / 32 * 32;
    for (int64_t d = 0; d < done; d += 32) {
      for (int64_t i = 0; i < kPanelItems; i += 8) {
        transpose_avx2(items + i, d, kPanelItems * dims, panel + d * kPanelItems + i * kPanelStep);
      }
    }
    pack_rest(items, count, done, dims, panel);
    return;
  }
#endif
  pack_rest(items, count, 0, dims, panel);
}

void int8_scores(const uint8_t* queries, int64_t query_count, int64_t padded, const int8_t* panel,
                 int32_t* scores, int64_t stride) {
#ifdef __x86_64__
  static const bool avx2 = __builtin_cpu_supports("avx2") > 0;
  if (avx2) {
    int32_t dropped[kPanelItems];
    for (int64_t q = 0; q < query_count; q += kTileQueries) {
      // A query past the end is the last one again, and its scores are dropped.
      const uint8_t* tile[kTileQueries];
      int32_t* to[kTileQueries];
      for (int t = 0; t < kTileQueries; ++t) {
        tile[t] = queries + std::min(q + t, query_count - 1) * padded;
        to[t] = q + t < query_count ? scores + (q + t) * stride : dropped;
      }
      scores_avx2(tile, padded, panel, to);
    }
    return;
  }
#endif
  for (int64_t q = 0; q < query_count; ++q) {
    scores_portable(queries + q * padded, padded, panel, scores + q * stride);
  }
}

// The cast keeps the product within what one instruction does.
PLACKET_SIMD int32_t int8_dot(const int16_t* query, const int8_t* item, int64_t dims) {
  int32_t sum = 0;
  for (int64_t d = 0; d < dims; ++d) sum += int32_t(query[d]) * int32_t(int16_t(item[d]));
  return sum;
}

}  // namespace placket
