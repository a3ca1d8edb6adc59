#include "kernels/dot_scores.h"

#include <algorithm>
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace placket {
namespace {

// A tile is kQueries x kItems scores whose sums stay in registers while the rows go by once.
struct Tile {
  int queries, items;
  void (*run)(const float* const* queries, const float* const* items, int64_t dims, float* sums);
};

void tile_portable(const float* const* queries, const float* const* items, int64_t dims,
                   float* sums) {
  float lanes[kDotLanes] = {};
  for (int64_t d = 0; d < dims; d += kDotLanes) {
    for (int l = 0; l < kDotLanes; ++l) lanes[l] += queries[0][d + l] * items[0][d + l];
  }
  for (int apart = kDotLanes / 2; apart > 0; apart /= 2) {
    for (int l = 0; l < apart; ++l) lanes[l] += lanes[l + apart];
  }
  sums[0] = lanes[0];
}
constexpr Tile kPortable = {1, 1, tile_portable};

#ifdef __x86_64__
#define PLACKET_AVX2 __attribute__((target("avx2,fma")))
#define PLACKET_AVX512 __attribute__((target("avx2,fma,avx512f,avx512dq")))

PLACKET_AVX2 inline float add_lanes(__m256 eight) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// A register holds the lanes of one pair. 12 sums, 3 queries and an item make the 16 there are.
PLACKET_AVX2 void tile_avx2(const float* const* queries, const float* const* items, int64_t dims,
                            float* sums) {
  constexpr int Q = 3, I = 4;
  __m256 lanes[Q][I];
  for (int q = 0; q < Q; ++q) {
    for (int i = 0; i < I; ++i) lanes[q][i] = _mm256_setzero_ps();
  }
  for (int64_t d = 0; d < dims; d += kDotLanes) {
    __m256 query[Q];
    for (int q = 0; q < Q; ++q) query[q] = _mm256_loadu_ps(queries[q] + d);
    for (int i = 0; i < I; ++i) {
      const __m256 item = _mm256_loadu_ps(items[i] + d);
      for (int q = 0; q < Q; ++q) lanes[q][i] = _mm256_fmadd_ps(query[q], item, lanes[q][i]);
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int i = 0; i < I; ++i) sums[q * I + i] = add_lanes(lanes[q][i]);
  }
}
constexpr Tile kAvx2 = {3, 4, tile_avx2};

// A register holds the lanes of one query and two items. 24 of the 32 are sums. The forms with a
// full mask are the plain ones without GCC's false warning about their undefined pass-through
// (gcc.gnu.org/PR105593).
PLACKET_AVX512 void tile_avx512(const float* const* queries, const float* const* items,
                                int64_t dims, float* sums) {
  constexpr int Q = 4, P = 6;
  __m512 lanes[Q][P];
  for (int q = 0; q < Q; ++q) {
    for (int p = 0; p < P; ++p) lanes[q][p] = _mm512_setzero_ps();
  }
  for (int64_t d = 0; d < dims; d += kDotLanes) {
    __m512 query[Q];
    for (int q = 0; q < Q; ++q) {
      query[q] = _mm512_maskz_broadcast_f32x8(0xffff, _mm256_loadu_ps(queries[q] + d));
    }
    for (int p = 0; p < P; ++p) {
      const __m512 pair =
          _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(items[2 * p] + d)),
                             _mm256_loadu_ps(items[2 * p + 1] + d), 1);
      for (int q = 0; q < Q; ++q) lanes[q][p] = _mm512_fmadd_ps(query[q], pair, lanes[q][p]);
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int p = 0; p < P; ++p) {
      float* sum = sums + q * 2 * P + 2 * p;
      sum[0] = add_lanes(_mm512_maskz_extractf32x8_ps(0xff, lanes[q][p], 0));
      sum[1] = add_lanes(_mm512_maskz_extractf32x8_ps(0xff, lanes[q][p], 1));
    }
  }
}
constexpr Tile kAvx512 = {4, 12, tile_avx512};

const Tile& best_tile() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
  return kPortable;
}
#else
const Tile& best_tile() { return kPortable; }
#endif

constexpr int kMostRows = 12;
constexpr int kMostSums = 48;

// So many bytes of queries stay in the second-level cache while all items pass.
constexpr int64_t kQueryBytes = 1 << 18;

}  // namespace

void dot_scores_cpu(const DotRows& in, float* scores, int64_t stride) {
  static const Tile tile = best_tile();
  const int64_t row_bytes = std::max<int64_t>(in.dims, 1) * int64_t(sizeof(float));
  const int64_t chunk = std::max<int64_t>(kQueryBytes / row_bytes / tile.queries, 1) * tile.queries;
  for (int64_t begin = 0; begin < in.query_count; begin += chunk) {
    const int64_t end = std::min(begin + chunk, in.query_count);
    for (int64_t i = 0; i < in.item_count; i += tile.items) {
      // A row past the end is the last one again, and its sums are dropped.
      const float* items[kMostRows];
      for (int t = 0; t < tile.items; ++t) {
        items[t] = in.items + std::min(i + t, in.item_count - 1) * in.dims;
      }
      for (int64_t q = begin; q < end; q += tile.queries) {
        const float* queries[kMostRows];
        for (int t = 0; t < tile.queries; ++t) {
          queries[t] = in.queries + std::min(q + t, end - 1) * in.dims;
        }
        float sums[kMostSums];
        tile.run(queries, items, in.dims, sums);
        for (int t = 0; t < tile.queries && q + t < end; ++t) {
          for (int u = 0; u < tile.items && i + u < in.item_count; ++u) {
            scores[(q + t) * stride + i + u] = sums[t * tile.items + u];
          }
        }
      }
    }
  }
}

}  // namespace placket
