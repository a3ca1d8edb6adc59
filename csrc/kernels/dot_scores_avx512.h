#pragma once

#include "kernels/dot_scores.h"

// tests/cpp/dot_scores_emulated_test.cpp compiles this file without the instructions: it defines
// the intrinsics as functions, and this as nothing.
#if !defined(PLACKET_AVX512)
#include <immintrin.h>
#define PLACKET_AVX512 __attribute__((target("avx2,fma,avx512f")))
#endif

// For loops over registers: GCC keeps an array in registers only where they are unrolled.
#define PLACKET_UNROLL _Pragma("GCC unroll 8")

namespace placket {

// Of the 32 registers the tile of eight queries takes 16 for sums, as many as hide the latency of
// two multiply-adds a cycle.
template <int Q>
PLACKET_AVX512 void tile_avx512(const float* queries, const float* panel, int64_t depth,
                                float* scores, int64_t stride, bool add) {
  __m512 sums[Q][2];
  PLACKET_UNROLL
  for (int q = 0; q < Q; ++q) sums[q][0] = sums[q][1] = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int64_t d = 0; d < depth; ++d) {
    const __m512 low = _mm512_load_ps(panel + 32 * d), high = _mm512_load_ps(panel + 32 * d + 16);
    PLACKET_UNROLL
    for (int q = 0; q < Q; ++q) {
      const __m512 value = _mm512_set1_ps(queries[q * kDotBlock + d]);
      sums[q][0] = _mm512_fmadd_ps(value, low, sums[q][0]);
      sums[q][1] = _mm512_fmadd_ps(value, high, sums[q][1]);
    }
  }
  PLACKET_UNROLL
  for (int q = 0; q < Q; ++q) {
    PLACKET_UNROLL
    for (int h = 0; h < 2; ++h) {
      float* score = scores + q * stride + 16 * h;
      const __m512 sum = sums[q][h];
      _mm512_storeu_ps(score, add ? _mm512_add_ps(_mm512_loadu_ps(score), sum) : sum);
    }
  }
}

}  // namespace placket
