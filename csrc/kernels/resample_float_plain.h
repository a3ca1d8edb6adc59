#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/resample_axis.h"
#include "kernels/resample_taps.h"

namespace placket {

// A sum over the rows that stands for the grey level 255.
constexpr float kFloatMost = 255.0f * float(1 << kWeightBits);

inline float float_weight(int32_t weight) { return float(weight) / float(1 << kWeightBits); }

// What makes the normalised value of a sum over both axes, once that is clipped to [0, kFloatMost].
struct ChannelLine {
  float scale[kChannels], shift[kChannels];

  ChannelLine(const float (&mean)[3], const float (&std)[3]) {
    for (int64_t c = 0; c < kChannels; ++c) {
      scale[c] = float(1.0 / (double(kFloatMost) * double(std[c])));
      shift[c] = float(-double(mean[c]) / double(std[c]));
    }
  }
};

// Float arithmetic: for each output row exact integer sums over its source rows, then float32 sums
// over the columns, the taps in their order and every operation rounded by itself. avx2 holds the
// same function with the same bits.
namespace plain {

inline void resample_float(const ResampleJob& job, const ResampleAxis& columns,
                           const ResampleAxis& rows, const ChannelLine& line, float* out) {
  const int64_t image_row = job.image_width * kChannels;
  std::vector<float> sums(image_row);
  for (int64_t y = 0; y < rows.size; ++y) {
    for (int64_t i = columns.source_begin * kChannels; i < columns.source_end * kChannels; ++i) {
      int32_t sum = 0;
      for (int64_t t = 0; t < rows.count[y]; ++t) {
        sum += rows.weights[y * rows.most + t] * job.image[(rows.begin[y] + t) * image_row + i];
      }
      sums[i] = float(sum);
    }
    for (int64_t x = 0; x < columns.size; ++x) {
      for (int64_t c = 0; c < kChannels; ++c, ++out) {
        float sum = 0.0f;
        for (int64_t t = 0; t < columns.count[x]; ++t) {
          sum += sums[(columns.begin[x] + t) * kChannels + c] *
                 float_weight(columns.weights[x * columns.most + t]);
        }
        *out = std::min(std::max(sum, 0.0f), kFloatMost) * line.scale[c] + line.shift[c];
      }
    }
  }
}

}  // namespace plain

}  // namespace placket
