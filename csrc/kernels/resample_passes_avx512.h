#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/resample_axis.h"
#include "kernels/resample_passes_plain.h"
#include "kernels/resample_split_weights.h"
#include "kernels/resample_taps.h"

// tests/cpp/resample_emulated_test.cpp compiles this file without the instructions: it defines
// the intrinsics as functions, and this as nothing.
#if !defined(PLACKET_AVX512)
#include <immintrin.h>
#define PLACKET_AVX512 __attribute__((target("avx512f,avx512bw")))
#endif

// GCC warns falsely of the intrinsics' undefined pass-through (gcc.gnu.org/PR105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace placket::avx512 {

// Whether the processor has what this file is compiled for.
inline bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

class Passes {
 public:
  // Up to three pixels that fill the last group, and what a store of 16 bytes writes past four.
  static constexpr int64_t kSpill = 13;

  static constexpr int64_t kTogether = 2;  // as with AVX2

  explicit Passes(const ResampleAxis& columns) : weights_(columns) {}

  int64_t reach() const { return weights_.reach; }

  template <int64_t kRows>
  PLACKET_AVX512 void horizontal(const uint8_t* const* rows, uint8_t* const* outs) const {
    // Red, green and blue of two neighbouring pixels of four as pairs of 16-bit values.
    const __m512i front_pair = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m512i back_pair = _mm512_broadcast_i32x4(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m128i close_gaps =
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const int16_t* factors = weights_.factors.data();
    for (int64_t g = 0; g < weights_.groups; ++g) {
      const int64_t* offsets = &weights_.offsets[4 * g];
      __m512i low[kRows], high[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        low[r] = _mm512_set1_epi32(kWeightHalf);
        high[r] = _mm512_setzero_si512();
      }
      for (int64_t s = 0; s < weights_.steps; ++s, factors += Weights::kStep) {
        for (int64_t r = 0; r < kRows; ++r) {
          const uint8_t* step = rows[r] + 12 * s;
          __m512i pixels = _mm512_castsi128_si512(load16(step + offsets[0]));
          pixels = _mm512_inserti32x4(pixels, load16(step + offsets[1]), 1);
          pixels = _mm512_inserti32x4(pixels, load16(step + offsets[2]), 2);
          pixels = _mm512_inserti32x4(pixels, load16(step + offsets[3]), 3);
          const __m512i front = _mm512_shuffle_epi8(pixels, front_pair);
          const __m512i back = _mm512_shuffle_epi8(pixels, back_pair);
          low[r] = add_products(low[r], front, load64(factors));
          high[r] = add_products(high[r], front, load64(factors + Weights::kHigh));
          low[r] = add_products(low[r], back, load64(factors + Weights::kBack));
          high[r] = add_products(high[r], back, load64(factors + Weights::kBack + Weights::kHigh));
        }
      }
      const __m512i zero = _mm512_setzero_si512();
      for (int64_t r = 0; r < kRows; ++r) {
        const __m512i sum = _mm512_add_epi32(low[r], _mm512_slli_epi32(high[r], kLowBits));
        const __m512i words = _mm512_packus_epi32(to_levels(sum), zero);
        const __m512i bytes = _mm512_packus_epi16(words, zero);
        const __m128i four = _mm512_castsi512_si128(_mm512_permutexvar_epi32(lanes, bytes));
        // The store spills four bytes into the next pixels, which are written after it.
        _mm_storeu_si128(reinterpret_cast<__m128i*>(outs[r] + 12 * g),
                         _mm_shuffle_epi8(four, close_gaps));
      }
    }
  }

  PLACKET_AVX512 static void vertical(const WeightedRows& in, int64_t begin, int64_t end,
                                      uint8_t* out) {
    if (end - begin < kBlock) return plain::Passes::vertical(in, begin, end, out);
    // The last block overlaps the one before it.
    for (int64_t i = begin; i < end; i += kBlock)
      vertical_block(in, std::min(i, end - kBlock), out);
  }

 private:
  using Weights = SplitWeights<4>;
  static constexpr int64_t kBlock = 64;

  PLACKET_AVX512 static void vertical_block(const WeightedRows& in, int64_t i, uint8_t* out) {
    __m512i a = _mm512_set1_epi32(kWeightHalf), b = a, c = a, d = a;
    const auto add = [](__m512i& sum, const uint8_t* bytes, __m512i weight) PLACKET_AVX512 {
      sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(_mm512_cvtepu8_epi32(load16(bytes)), weight));
    };
    for (int64_t t = 0; t < in.count; ++t) {
      const __m512i weight = _mm512_set1_epi32(in.weights[t]);
      const uint8_t* row = in.rows[t] + i;
      add(a, row, weight);
      add(b, row + 16, weight);
      add(c, row + 32, weight);
      add(d, row + 48, weight);
    }
    // Packing works in each quarter: words of four bytes come out as a0 b0 c0 d0 a1 b1 c1 d1 ...
    const __m512i packed = _mm512_packus_epi16(_mm512_packus_epi32(to_levels(a), to_levels(b)),
                                               _mm512_packus_epi32(to_levels(c), to_levels(d)));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(order, packed));
  }

  PLACKET_AVX512 static __m512i add_products(__m512i sum, __m512i values, __m512i factors) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(values, factors));
  }
  // Of sums, still to be clipped to 8 bits.
  PLACKET_AVX512 static __m512i to_levels(__m512i sum) {
    return _mm512_srai_epi32(sum, kWeightBits);
  }
  PLACKET_AVX512 static __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  PLACKET_AVX512 static __m512i load64(const void* p) { return _mm512_loadu_si512(p); }

  Weights weights_;
};

}  // namespace placket::avx512

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
