#pragma once

#include <cstring>

#include "kernels/panel_scores.h"

// tests/cpp/panel_scores_emulated_test.cpp compiles this file without the instructions: it defines
// the intrinsics as functions, and these as nothing.
#if !defined(PLACKET_VNNI)
#include <immintrin.h>
#define PLACKET_VNNI __attribute__((target("avx512f,avx512vnni")))
#define PLACKET_BF16 __attribute__((target("avx512f,avx512bf16")))
#endif

namespace placket {

// Of the 32 registers 24 are sums: as many as hide the latency of two products a cycle.
constexpr int kPanelTileQueries = 12;

template <int Q>
PLACKET_VNNI void int8_tile_avx512(const uint8_t* queries, int64_t padded, const int8_t* panel,
                                   int32_t* scores, int64_t stride) {
  __m512i sums[Q][2];
#pragma GCC unroll 12
  for (int q = 0; q < Q; ++q) sums[q][0] = sums[q][1] = _mm512_setzero_si512();
  for (int64_t d = 0; d < padded; d += kPanelStep, panel += kPanelStep * kPanelItems) {
    const __m512i low = _mm512_load_si512(panel), high = _mm512_load_si512(panel + 64);
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
      int32_t four;
      std::memcpy(&four, queries + q * padded + d, sizeof four);
      const __m512i value = _mm512_set1_epi32(four);
      sums[q][0] = _mm512_dpbusd_epi32(sums[q][0], value, low);
      sums[q][1] = _mm512_dpbusd_epi32(sums[q][1], value, high);
    }
  }
#pragma GCC unroll 12
  for (int q = 0; q < Q; ++q) {
    _mm512_storeu_si512(scores + q * stride, sums[q][0]);
    _mm512_storeu_si512(scores + q * stride + 16, sums[q][1]);
  }
}

template <int Q>
PLACKET_BF16 void bfloat16_tile_avx512(const BFloat16* queries, int64_t padded,
                                       const BFloat16* panel, float* scores, int64_t stride) {
  __m512 sums[Q][2];
#pragma GCC unroll 12
  for (int q = 0; q < Q; ++q) sums[q][0] = sums[q][1] = _mm512_setzero_ps();
  const auto* bytes = reinterpret_cast<const char*>(panel);
  for (int64_t d = 0; d < padded; d += kPanelStep, bytes += kPanelStep * kPanelItems) {
    const auto low = __builtin_bit_cast(__m512bh, _mm512_load_si512(bytes));
    const auto high = __builtin_bit_cast(__m512bh, _mm512_load_si512(bytes + 64));
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
      int32_t two;
      std::memcpy(&two, reinterpret_cast<const char*>(queries) + q * padded + d, sizeof two);
      const auto value = __builtin_bit_cast(__m512bh, _mm512_set1_epi32(two));
      sums[q][0] = _mm512_dpbf16_ps(sums[q][0], value, low);
      sums[q][1] = _mm512_dpbf16_ps(sums[q][1], value, high);
    }
  }
#pragma GCC unroll 12
  for (int q = 0; q < Q; ++q) {
    _mm512_storeu_ps(scores + q * stride, sums[q][0]);
    _mm512_storeu_ps(scores + q * stride + 16, sums[q][1]);
  }
}

}  // namespace placket
