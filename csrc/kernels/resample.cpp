#include "kernels/resample.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/bfloat16.h"
#include "kernels/resample_taps.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace placket {
namespace {

constexpr int64_t kChannels = 3;
// Bytes the horizontal pass may write past the end of its row: an odd last pixel's partner and the
// spill of a 4-byte store.
constexpr int64_t kPadding = 8;

// One axis of the window: for each output coordinate the first source coordinate (in the image) and
// `most` weights, of which those past `count` are zero.
struct Axis {
  int64_t size, most;
  int64_t source_begin = 0, source_end = 0;  // all that the window reads
  std::vector<int64_t> begin, count;
  std::vector<int32_t> weights;

  // The window [first, first + size) of a box resized to `resized_size`; mirrored with `flip`.
  template <Filter kFilter>
  Axis(std::integral_constant<Filter, kFilter>, int64_t box_begin, int64_t box_end,
       int64_t image_size, int64_t resized_size, int64_t first, int64_t size, bool flip)
      : size(size),
        most(FilterTaps<kFilter>::most(box_end - box_begin, resized_size)),
        begin(size),
        count(size),
        weights(size * most) {
    for (int64_t i = 0; i < size; ++i) {
      FilterTaps<kFilter> taps(box_end - box_begin, resized_size,
                               first + (flip ? size - 1 - i : i));
      taps.clip(-box_begin, image_size - box_begin);
      count[i] = taps.end() - taps.begin();
      begin[i] = count[i] == 0 ? 0 : taps.begin() + box_begin;
      for (int64_t t = 0; t < count[i]; ++t) {
        weights[i * most + t] = taps.weight(taps.begin() + t);
      }
      if (count[i] == 0) continue;
      source_begin = source_end == 0 ? begin[i] : std::min(source_begin, begin[i]);
      source_end = std::max(source_end, begin[i] + count[i]);
    }
  }
};

// The sources of one output row, `count` of them.
struct WeightedRows {
  const uint8_t* const* rows;
  const int32_t* weights;
  int64_t count;
};

void vertical_plain(const WeightedRows& in, int64_t begin, int64_t end, uint8_t* out) {
  for (int64_t i = begin; i < end; ++i) {
    int32_t sum = kWeightHalf;
    for (int64_t t = 0; t < in.count; ++t) sum += in.weights[t] * in.rows[t][i];
    out[i] = round_to_uint8(sum);
  }
}

class PlainPasses {
 public:
  explicit PlainPasses(const Axis& columns) : columns_(columns) {}

  // How far past the start of an image row `horizontal` may read.
  int64_t reach() const { return columns_.source_end * kChannels; }

  void horizontal(const uint8_t* row, uint8_t* out) const {
    for (int64_t x = 0; x < columns_.size; ++x) {
      const uint8_t* pixel = row + columns_.begin[x] * kChannels;
      const int32_t* weights = &columns_.weights[x * columns_.most];
      int32_t sum[kChannels] = {kWeightHalf, kWeightHalf, kWeightHalf};
      for (int64_t t = 0; t < columns_.count[x]; ++t) {
        for (int64_t c = 0; c < kChannels; ++c) sum[c] += weights[t] * pixel[t * kChannels + c];
      }
      for (int64_t c = 0; c < kChannels; ++c) out[x * kChannels + c] = round_to_uint8(sum[c]);
    }
  }

  // Bytes [begin, end) of the rows.
  void vertical(const WeightedRows& in, int64_t begin, int64_t end, uint8_t* out) const {
    vertical_plain(in, begin, end, out);
  }

 private:
  const Axis& columns_;
};

#if defined(__x86_64__)
#define PLACKET_AVX2 __attribute__((target("avx2")))

// The horizontal pass keeps two output pixels in the two halves of a register and takes two taps a
// step by 16-bit multiply-add. A 23-bit weight is two factors for that, high * 2^11 + low, whose
// sums are joined exactly at the end.
class Avx2Passes {
 public:
  explicit Avx2Passes(const Axis& columns)
      : pairs_((columns.size + 1) / 2),
        steps_(
            (std::max<int64_t>(1, *std::max_element(columns.count.begin(), columns.count.end())) +
             1) /
            2),
        offsets_(pairs_ * 2),
        factors_(pairs_ * steps_ * kFactors) {
    for (int64_t x = 0; x < columns.size; ++x) {
      offsets_[x] = columns.begin[x] * kChannels;
      reach_ = std::max(reach_, offsets_[x] + steps_ * 2 * kChannels + 16);
      int16_t* factors = &factors_[(x / 2) * steps_ * kFactors + (x % 2) * 8];
      for (int64_t t = 0; t < columns.count[x]; ++t) {
        const int32_t weight = columns.weights[x * columns.most + t];
        int16_t* f = factors + (t / 2) * kFactors + t % 2;
        for (int64_t c = 0; c < kChannels; ++c) {
          f[2 * c] = int16_t(weight & kLowMask);
          f[2 * c + 16] = int16_t(weight >> kLowBits);
        }
      }
    }
  }

  int64_t reach() const { return reach_; }

  PLACKET_AVX2 void horizontal(const uint8_t* row, uint8_t* out) const {
    // Red, green and blue of two neighbouring pixels as pairs of 16-bit values.
    const __m256i pair_up = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i to_bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i half = _mm256_set1_epi32(kWeightHalf);
    const int16_t* factors = factors_.data();
    for (int64_t p = 0; p < pairs_; ++p) {
      const uint8_t* first = row + offsets_[2 * p];
      const uint8_t* second = row + offsets_[2 * p + 1];
      __m256i low = half, high = _mm256_setzero_si256();
      for (int64_t s = 0; s < steps_; ++s) {
        const __m256i pixels = _mm256_shuffle_epi8(
            _mm256_inserti128_si256(_mm256_castsi128_si256(load16(first + 6 * s)),
                                    load16(second + 6 * s), 1),
            pair_up);
        low = _mm256_add_epi32(low, _mm256_madd_epi16(pixels, load32(factors)));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(pixels, load32(factors + 16)));
        factors += kFactors;
      }
      const __m256i sum = _mm256_add_epi32(low, _mm256_slli_epi32(high, kLowBits));
      const __m256i clipped = _mm256_max_epi32(
          _mm256_setzero_si256(),
          _mm256_min_epi32(_mm256_srai_epi32(sum, kWeightBits), _mm256_set1_epi32(255)));
      const __m256i bytes = _mm256_shuffle_epi8(clipped, to_bytes);
      // Each store spills one byte into the next pixel, which is written after it.
      store4(out + 6 * p, _mm256_castsi256_si128(bytes));
      store4(out + 6 * p + 3, _mm256_extracti128_si256(bytes, 1));
    }
  }

  PLACKET_AVX2 void vertical(const WeightedRows& in, int64_t begin, int64_t end,
                             uint8_t* out) const {
    const __m256i half = _mm256_set1_epi32(kWeightHalf);
    int64_t i = begin;
    for (; i + 32 <= end; i += 32) {
      __m256i a = half, b = half, c = half, d = half;
      for (int64_t t = 0; t < in.count; ++t) {
        const __m256i weight = _mm256_set1_epi32(in.weights[t]);
        const uint8_t* row = in.rows[t] + i;
        a = _mm256_add_epi32(a, _mm256_mullo_epi32(widen8(row), weight));
        b = _mm256_add_epi32(b, _mm256_mullo_epi32(widen8(row + 8), weight));
        c = _mm256_add_epi32(c, _mm256_mullo_epi32(widen8(row + 16), weight));
        d = _mm256_add_epi32(d, _mm256_mullo_epi32(widen8(row + 24), weight));
      }
      const __m256i ab =
          _mm256_packus_epi32(_mm256_srai_epi32(a, kWeightBits), _mm256_srai_epi32(b, kWeightBits));
      const __m256i cd =
          _mm256_packus_epi32(_mm256_srai_epi32(c, kWeightBits), _mm256_srai_epi32(d, kWeightBits));
      // Packing works in each half: 32-bit blocks come out as a0 b0 c0 d0 a1 b1 c1 d1.
      const __m256i packed = _mm256_packus_epi16(ab, cd);
      const __m256i ordered =
          _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), ordered);
    }
    vertical_plain(in, i, end, out);
  }

 private:
  static constexpr int kLowBits = 11;
  static constexpr int32_t kLowMask = (1 << kLowBits) - 1;
  // 16-bit factors of a step: low and high, each for two pixels, three channels and a gap, two
  // taps.
  static constexpr int64_t kFactors = 32;

  PLACKET_AVX2 static __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  PLACKET_AVX2 static __m256i load32(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  PLACKET_AVX2 static __m256i widen8(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  PLACKET_AVX2 static void store4(uint8_t* p, __m128i value) {
    const int32_t word = _mm_cvtsi128_si32(value);
    memcpy(p, &word, sizeof word);
  }

  int64_t pairs_, steps_;
  int64_t reach_ = 0;
  std::vector<int64_t> offsets_;  // of each output pixel's first tap in an image row, in bytes
  std::vector<int16_t> factors_;
};

bool use_avx2() {
  static const bool use = [] {
    const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
    const bool forbidden = capability != nullptr && std::string_view(capability) == "default";
    return !forbidden && __builtin_cpu_supports("avx2");
  }();
  return use;
}
#endif

// Rows of the horizontal pass are made when they are first needed and kept in a ring that just
// holds one output row's taps, so that the vertical pass reads them from the nearest cache.
template <class Passes, class Write>
void horizontal_then_vertical(const ResampleJob& job, const Passes& passes, const Axis& columns,
                              const Axis& rows, const Write& write) {
  const int64_t image_row = job.image_width * kChannels;
  const uint8_t* image_end = job.image + job.image_height * image_row;
  const int64_t bytes = columns.size * kChannels;
  const int64_t ring_row = bytes + kPadding;
  std::vector<uint8_t> ring(rows.most * ring_row), out(bytes), last_row;
  std::vector<const uint8_t*> taps(rows.most);
  int64_t done = 0;  // rows of the image that have been through the horizontal pass
  for (int64_t y = 0; y < rows.size; ++y) {
    const int64_t begin = rows.begin[y], end = begin + rows.count[y];
    for (done = std::max(done, begin); done < end; ++done) {
      const uint8_t* row = job.image + done * image_row;
      if (image_end - row < passes.reach()) {
        // Vectors would read past the image: they get a padded copy.
        last_row.resize(passes.reach());
        std::copy(row, image_end, last_row.begin());
        row = last_row.data();
      }
      passes.horizontal(row, &ring[(done % rows.most) * ring_row]);
    }
    for (int64_t r = begin; r < end; ++r) taps[r - begin] = &ring[(r % rows.most) * ring_row];
    passes.vertical({taps.data(), &rows.weights[y * rows.most], end - begin}, 0, bytes, out.data());
    write(y, out.data());
  }
}

template <class Passes, class Write>
void vertical_then_horizontal(const ResampleJob& job, const Passes& passes, const Axis& columns,
                              const Axis& rows, const Write& write) {
  const int64_t image_row = job.image_width * kChannels;
  std::vector<uint8_t> middle(std::max(image_row, passes.reach()));
  std::vector<uint8_t> out(columns.size * kChannels + kPadding);
  std::vector<const uint8_t*> taps(rows.most);
  for (int64_t y = 0; y < rows.size; ++y) {
    for (int64_t t = 0; t < rows.count[y]; ++t) {
      taps[t] = job.image + (rows.begin[y] + t) * image_row;
    }
    passes.vertical({taps.data(), &rows.weights[y * rows.most], rows.count[y]},
                    columns.source_begin * kChannels, columns.source_end * kChannels,
                    middle.data());
    passes.horizontal(middle.data(), out.data());
    write(y, out.data());
  }
}

// Calls write(y, row) with every row of the window, top to bottom.
template <class Passes, class Write>
void resample(const ResampleJob& job, const Axis& columns, const Axis& rows, const Write& write) {
  const Passes passes(columns);
  if (vertical_first(job.y1 - job.y0, job.x1 - job.x0, job.resized_height, job.resized_width)) {
    vertical_then_horizontal(job, passes, columns, rows, write);
  } else {
    horizontal_then_vertical(job, passes, columns, rows, write);
  }
}

// The two axes of a job's window, columns and rows.
template <Filter kFilter>
std::pair<Axis, Axis> axes_of(const ResampleJob& job, int64_t height, int64_t width) {
  constexpr std::integral_constant<Filter, kFilter> filter;
  return {
      Axis(filter, job.x0, job.x1, job.image_width, job.resized_width, job.left, width, job.flip),
      Axis(filter, job.y0, job.y1, job.image_height, job.resized_height, job.top, height, false)};
}

std::pair<Axis, Axis> axes_of(const ResampleJob& job, int64_t height, int64_t width) {
  switch (job.filter) {
    case Filter::kBox:
      return axes_of<Filter::kBox>(job, height, width);
    case Filter::kBilinear:
      return axes_of<Filter::kBilinear>(job, height, width);
    case Filter::kBicubic:
      return axes_of<Filter::kBicubic>(job, height, width);
    case Filter::kLanczos:
      return axes_of<Filter::kLanczos>(job, height, width);
  }
  std::abort();
}

template <class Write>
void resample(const ResampleJob& job, int64_t height, int64_t width, const Write& write) {
  if (height == 0 || width == 0) return;
  const auto [columns, rows] = axes_of(job, height, width);
#if defined(__x86_64__)
  if (use_avx2()) return resample<Avx2Passes>(job, columns, rows, write);
#endif
  resample<PlainPasses>(job, columns, rows, write);
}

}  // namespace

void resample_uint8_cpu(const ResampleJob& job, int64_t height, int64_t width, uint8_t* out) {
  resample(job, height, width, [&](int64_t y, const uint8_t* row) {
    std::copy(row, row + width * kChannels, out + y * width * kChannels);
  });
}

template <class T>
void resample_normalized_cpu(const ResampleJob& job, int64_t height, int64_t width,
                             const float (&mean)[3], const float (&std)[3], int64_t channel_stride,
                             int64_t row_stride, int64_t column_stride, T* out) {
  std::array<std::array<T, 256>, kChannels> table;
  for (int64_t c = 0; c < kChannels; ++c) {
    for (int v = 0; v < 256; ++v) table[c][v] = T(normalize_uint8(uint8_t(v), mean[c], std[c]));
  }
  resample(job, height, width, [&](int64_t y, const uint8_t* row) {
    T* const out_row = out + y * row_stride;
    if (channel_stride == 1 && column_stride == kChannels) {
      for (int64_t i = 0; i < width * kChannels; i += kChannels) {
        for (int64_t c = 0; c < kChannels; ++c) out_row[i + c] = table[c][row[i + c]];
      }
      return;
    }
    for (int64_t c = 0; c < kChannels; ++c) {
      const T* values = table[c].data();
      T* const channel = out_row + c * channel_stride;
      for (int64_t x = 0; x < width; ++x) {
        channel[x * column_stride] = values[row[x * kChannels + c]];
      }
    }
  });
}

template void resample_normalized_cpu<float>(const ResampleJob&, int64_t, int64_t,
                                             const float (&)[3], const float (&)[3], int64_t,
                                             int64_t, int64_t, float*);
template void resample_normalized_cpu<BFloat16>(const ResampleJob&, int64_t, int64_t,
                                                const float (&)[3], const float (&)[3], int64_t,
                                                int64_t, int64_t, BFloat16*);

}  // namespace placket
