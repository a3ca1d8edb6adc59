#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/resample_axis.h"
#include "kernels/resample_float_plain.h"

#define PLACKET_AVX2 __attribute__((target("avx2")))

namespace placket::avx2 {

constexpr int64_t kStrip = 8;   // output rows, the floats of a register
constexpr int64_t kBlock = 32;  // values of a row that the vertical pass sums in registers
constexpr int64_t kSpan = 256;  // and that it takes of a strip before the next: long reads of a row

// out[j][i] = in[i][j] for i, j < 8, the rows so many floats apart.
PLACKET_AVX2 inline void transpose8(const float* in, int64_t in_row, float* out, int64_t out_row) {
  for (int64_t half = 0; half < 8; half += 4) {
    // Rows i and i + 4 in the halves of a register, of which each is transposed by itself.
    const auto load = [&](int64_t i) PLACKET_AVX2 {
      const float* first = in + i * in_row + half;
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)),
                                  _mm_loadu_ps(first + 4 * in_row), 1);
    };
    const __m256 a = load(0), b = load(1), c = load(2), d = load(3);
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    float* to = out + half * out_row;
    _mm256_storeu_ps(to, _mm256_shuffle_ps(ab_low, cd_low, 0x44));
    _mm256_storeu_ps(to + out_row, _mm256_shuffle_ps(ab_low, cd_low, 0xee));
    _mm256_storeu_ps(to + 2 * out_row, _mm256_shuffle_ps(ab_high, cd_high, 0x44));
    _mm256_storeu_ps(to + 3 * out_row, _mm256_shuffle_ps(ab_high, cd_high, 0xee));
  }
}

// Strips of eight output rows, each a lane: the horizontal pass then works on whole registers.
class FloatStrips {
 public:
  // Whether there is room for a strip and a block; the last ones overlap those before them.
  static bool fit(const ResampleAxis& columns, const ResampleAxis& rows) {
    return rows.size >= kStrip && columns.size >= kStrip &&
           (columns.source_end - columns.source_begin) * kChannels >= kBlock;
  }

  FloatStrips(const ResampleJob& job, const ResampleAxis& columns, const ResampleAxis& rows,
              const ChannelLine& line)
      : job_(job),
        columns_(columns),
        rows_(rows),
        line_(line),
        taps_(*std::max_element(columns.count.begin(), columns.count.end())),
        weights_(columns.size * taps_),
        sums_((job.image_width + taps_) * kChannels * kStrip) {
    for (int64_t x = 0; x < columns.size; ++x) {
      for (int64_t t = 0; t < columns.count[x]; ++t) {
        weights_[x * taps_ + t] = float_weight(columns.weights[x * columns.most + t]);
      }
    }
  }

  void run(float* out) {
    for (int64_t y = 0; y < rows_.size; y += kStrip) {
      const int64_t first = std::min(y, rows_.size - kStrip);
      const int64_t begin = columns_.source_begin * kChannels;
      const int64_t end = columns_.source_end * kChannels;
      const int64_t whole = (end - begin) / kBlock * kBlock;
      for (int64_t i = begin, span = 0; i < end; i += span) {
        span = std::min({kSpan, (end - i + kBlock - 1) / kBlock * kBlock, whole});
        vertical(first, std::min(i, end - span), span);
      }
      for (int64_t x = 0; x < columns_.size; x += kStrip) {
        horizontal(first, std::min(x, columns_.size - kStrip), out);
      }
    }
  }

 private:
  // sums_[i ... i + span][row of the strip]; span a multiple of kBlock, at most kSpan
  PLACKET_AVX2 void vertical(int64_t y, int64_t i, int64_t span) {
    alignas(32) float tile[kStrip * kSpan];
    const int64_t image_row = job_.image_width * kChannels;
    const auto add = [](__m256i& sum, const uint8_t* bytes, __m256i weight) PLACKET_AVX2 {
      const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
      sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(eight), weight));
    };
    for (int64_t r = 0; r < kStrip; ++r) {
      const int32_t* weights = &rows_.weights[(y + r) * rows_.most];
      for (int64_t j = 0; j < span; j += kBlock) {
        const uint8_t* row = job_.image + rows_.begin[y + r] * image_row + i + j;
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
        for (int64_t t = 0; t < rows_.count[y + r]; ++t, row += image_row) {
          const __m256i weight = _mm256_set1_epi32(weights[t]);
          add(a, row, weight);
          add(b, row + 8, weight);
          add(c, row + 16, weight);
          add(d, row + 24, weight);
        }
        float* to = tile + r * kSpan + j;
        _mm256_store_ps(to, _mm256_cvtepi32_ps(a));
        _mm256_store_ps(to + 8, _mm256_cvtepi32_ps(b));
        _mm256_store_ps(to + 16, _mm256_cvtepi32_ps(c));
        _mm256_store_ps(to + 24, _mm256_cvtepi32_ps(d));
      }
    }
    for (int64_t j = 0; j < span; j += 8) {
      transpose8(tile + j, kSpan, &sums_[(i + j) * kStrip], kStrip);
    }
  }

  // Eight columns of the strip.
  PLACKET_AVX2 void horizontal(int64_t y, int64_t x, float* out) const {
    constexpr int64_t kValues = 8 * kChannels;
    alignas(32) float tile[kValues * kStrip];
    for (int64_t k = 0; k < 8; ++k) {
      const float* sums = &sums_[columns_.begin[x + k] * kChannels * kStrip];
      const float* weights = &weights_[(x + k) * taps_];
      __m256 red = _mm256_setzero_ps(), green = red, blue = red;
      const auto add = [](__m256& sum, const float* values, __m256 weight) PLACKET_AVX2 {
        sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_loadu_ps(values), weight));
      };
      for (int64_t t = 0; t < taps_; ++t, sums += kChannels * kStrip) {
        const __m256 weight = _mm256_set1_ps(weights[t]);
        add(red, sums, weight);
        add(green, sums + kStrip, weight);
        add(blue, sums + 2 * kStrip, weight);
      }
      float* to = tile + k * kChannels * kStrip;
      _mm256_store_ps(to, normalize(red, 0));
      _mm256_store_ps(to + kStrip, normalize(green, 1));
      _mm256_store_ps(to + 2 * kStrip, normalize(blue, 2));
    }
    const int64_t out_row = columns_.size * kChannels;
    for (int64_t j = 0; j < kValues; j += 8) {
      transpose8(tile + j * kStrip, kStrip, out + y * out_row + x * kChannels + j, out_row);
    }
  }

  PLACKET_AVX2 __m256 normalize(__m256 sum, int64_t c) const {
    const __m256 clipped =
        _mm256_min_ps(_mm256_max_ps(sum, _mm256_setzero_ps()), _mm256_set1_ps(kFloatMost));
    return _mm256_add_ps(_mm256_mul_ps(clipped, _mm256_set1_ps(line_.scale[c])),
                         _mm256_set1_ps(line_.shift[c]));
  }

  const ResampleJob& job_;
  const ResampleAxis& columns_;
  const ResampleAxis& rows_;
  const ChannelLine& line_;
  int64_t taps_;
  std::vector<float> weights_;  // [columns.size, taps]
  std::vector<float> sums_;     // [(image_width + taps) * kChannels, kStrip]
};

inline void resample_float(const ResampleJob& job, const ResampleAxis& columns,
                           const ResampleAxis& rows, const ChannelLine& line, float* out) {
  if (!FloatStrips::fit(columns, rows)) return plain::resample_float(job, columns, rows, line, out);
  FloatStrips(job, columns, rows, line).run(out);
}

}  // namespace placket::avx2
