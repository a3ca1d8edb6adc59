#include "kernels/resample.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include "base/bfloat16.h"
#include "kernels/resample_axis.h"
#include "kernels/resample_float_plain.h"
#include "kernels/resample_passes_plain.h"
#include "kernels/resample_rows.h"
#include "kernels/resample_taps.h"

#if defined(__x86_64__)
#include "kernels/resample_float_avx2.h"
#include "kernels/resample_passes_avx2.h"
#include "kernels/resample_passes_avx512.h"
#endif

namespace placket {
namespace {

enum class Instructions : uint8_t { kPlain, kAvx2, kAvx512 };

// The best that the processor has and ATEN_CPU_CAPABILITY allows.
Instructions best_instructions() {
  static const Instructions best = [] {
#if defined(__x86_64__)
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view allowed = variable == nullptr ? "" : variable;
    if (allowed == "default") return Instructions::kPlain;
    if (allowed != "avx2" && avx512::supported()) return Instructions::kAvx512;
    if (__builtin_cpu_supports("avx2")) return Instructions::kAvx2;
#endif
    return Instructions::kPlain;
  }();
  return best;
}

template <class Write>
void resample(const ResampleJob& job, int64_t height, int64_t width, const Write& write) {
  if (height == 0 || width == 0) return;
  const auto [columns, rows] = resample_axes(job, height, width);
  switch (best_instructions()) {
#if defined(__x86_64__)
    case Instructions::kAvx512:
      return resample_rows<avx512::Passes>(job, columns, rows, write);
    case Instructions::kAvx2:
      return resample_rows<avx2::Passes>(job, columns, rows, write);
#endif
    default:
      return resample_rows<plain::Passes>(job, columns, rows, write);
  }
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

void resample_float_cpu(const ResampleJob& job, int64_t height, int64_t width,
                        const float (&mean)[3], const float (&std)[3], float* out) {
  if (height == 0 || width == 0) return;
  const auto [columns, rows] = resample_axes(job, height, width);
  const ChannelLine line(mean, std);
#if defined(__x86_64__)
  if (best_instructions() != Instructions::kPlain) {
    return avx2::resample_float(job, columns, rows, line, out);
  }
#endif
  plain::resample_float(job, columns, rows, line, out);
}

template void resample_normalized_cpu<float>(const ResampleJob&, int64_t, int64_t,
                                             const float (&)[3], const float (&)[3], int64_t,
                                             int64_t, int64_t, float*);
template void resample_normalized_cpu<BFloat16>(const ResampleJob&, int64_t, int64_t,
                                                const float (&)[3], const float (&)[3], int64_t,
                                                int64_t, int64_t, BFloat16*);

}  // namespace placket
