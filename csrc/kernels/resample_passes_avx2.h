#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/resample_axis.h"
#include "kernels/resample_passes_plain.h"
#include "kernels/resample_split_weights.h"
#include "kernels/resample_taps.h"

#define PLACKET_AVX2 __attribute__((target("avx2")))

namespace placket::avx2 {

class Passes {
 public:
  // An odd last pixel's partner, and what a store of 4 bytes writes past a pixel.
  static constexpr int64_t kSpill = 4;

  // The factors of 224 columns fill the nearest cache, so that two rows share a reading of
  // them.
  static constexpr int64_t kTogether = 2;

  explicit Passes(const ResampleAxis& columns) : weights_(columns) {}

  int64_t reach() const { return weights_.reach; }

  template <int64_t kRows>
  PLACKET_AVX2 void horizontal(const uint8_t* const* rows, uint8_t* const* outs) const {
    // Red, green and blue of two neighbouring pixels of four as pairs of 16-bit values.
    const __m256i front_pair = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i back_pair = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const int16_t* factors = weights_.factors.data();
    for (int64_t g = 0; g < weights_.groups; ++g) {
      const int64_t first = weights_.offsets[2 * g], second = weights_.offsets[2 * g + 1];
      __m256i low[kRows], high[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        low[r] = _mm256_set1_epi32(kWeightHalf);
        high[r] = _mm256_setzero_si256();
      }
      for (int64_t s = 0; s < weights_.steps; ++s, factors += Weights::kStep) {
        for (int64_t r = 0; r < kRows; ++r) {
          const uint8_t* step = rows[r] + 12 * s;
          const __m256i pixels = _mm256_inserti128_si256(
              _mm256_castsi128_si256(load16(step + first)), load16(step + second), 1);
          const __m256i front = _mm256_shuffle_epi8(pixels, front_pair);
          const __m256i back = _mm256_shuffle_epi8(pixels, back_pair);
          low[r] = add_products(low[r], front, load32(factors));
          high[r] = add_products(high[r], front, load32(factors + Weights::kHigh));
          low[r] = add_products(low[r], back, load32(factors + Weights::kBack));
          high[r] = add_products(high[r], back, load32(factors + Weights::kBack + Weights::kHigh));
        }
      }
      const __m256i zero = _mm256_setzero_si256();
      for (int64_t r = 0; r < kRows; ++r) {
        const __m256i sum = _mm256_add_epi32(low[r], _mm256_slli_epi32(high[r], kLowBits));
        const __m256i words = _mm256_packus_epi32(to_levels(sum), zero);
        const __m256i bytes = _mm256_packus_epi16(words, zero);
        // Each store spills one byte into the next pixel, which is written after it.
        store4(outs[r] + 6 * g, _mm256_castsi256_si128(bytes));
        store4(outs[r] + 6 * g + 3, _mm256_extracti128_si256(bytes, 1));
      }
    }
  }

  PLACKET_AVX2 static void vertical(const WeightedRows& in, int64_t begin, int64_t end,
                                    uint8_t* out) {
    if (end - begin < kBlock) return plain::Passes::vertical(in, begin, end, out);
    // The last block overlaps the one before it.
    for (int64_t i = begin; i < end; i += kBlock)
      vertical_block(in, std::min(i, end - kBlock), out);
  }

 private:
  using Weights = SplitWeights<2>;
  static constexpr int64_t kBlock = 32;

  PLACKET_AVX2 static void vertical_block(const WeightedRows& in, int64_t i, uint8_t* out) {
    __m256i a = _mm256_set1_epi32(kWeightHalf), b = a, c = a, d = a;
    const auto add = [](__m256i& sum, const uint8_t* bytes, __m256i weight) PLACKET_AVX2 {
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
      sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(eight), weight));
    };
    for (int64_t t = 0; t < in.count; ++t) {
      const __m256i weight = _mm256_set1_epi32(in.weights[t]);
      const uint8_t* row = in.rows[t] + i;
      add(a, row, weight);
      add(b, row + 8, weight);
      add(c, row + 16, weight);
      add(d, row + 24, weight);
    }
    // Packing works in each half: words of four bytes come out as a0 b0 c0 d0 a1 b1 c1 d1.
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(to_levels(a), to_levels(b)),
                                               _mm256_packus_epi32(to_levels(c), to_levels(d)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm256_permutevar8x32_epi32(packed, order));
  }

  PLACKET_AVX2 static __m256i add_products(__m256i sum, __m256i values, __m256i factors) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(values, factors));
  }
  // Of sums, still to be clipped to 8 bits.
  PLACKET_AVX2 static __m256i to_levels(__m256i sum) { return _mm256_srai_epi32(sum, kWeightBits); }
  PLACKET_AVX2 static __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  PLACKET_AVX2 static __m256i load32(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  PLACKET_AVX2 static void store4(uint8_t* p, __m128i value) {
    const int32_t word = _mm_cvtsi128_si32(value);
    std::memcpy(p, &word, sizeof word);
  }

  Weights weights_;
};

}  // namespace placket::avx2
