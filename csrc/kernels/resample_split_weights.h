#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/resample_axis.h"

namespace placket {

// The horizontal pass multiplies 16-bit values and adds neighbouring products. A 23-bit weight is
// two factors for that, high * 2^11 + low, whose sums are joined exactly at the end.
constexpr int kLowBits = 11;
constexpr int32_t kLowMask = (1 << kLowBits) - 1;

// The columns' sources and weights for registers that hold kPixels output pixels, each in a lane of
// 16 bytes, and take four taps a step.
template <int64_t kPixels>
struct SplitWeights {
  // Factors of two taps: low and high, each for kPixels, three channels and a gap. A step has the
  // front two taps and the back two.
  static constexpr int64_t kHigh = kPixels * 8, kBack = 2 * kHigh, kStep = 2 * kBack;

  int64_t groups, steps;         // of kPixels pixels, of four taps
  int64_t reach;                 // bytes of a row that loads of 16 may read
  std::vector<int64_t> offsets;  // [groups * kPixels] of a pixel's first tap in a row, in bytes
  std::vector<int16_t> factors;  // [groups, steps, kStep]

  explicit SplitWeights(const ResampleAxis& columns) {
    const int64_t most = *std::max_element(columns.count.begin(), columns.count.end());
    const int64_t taps = std::max<int64_t>(1, most);
    groups = (columns.size + kPixels - 1) / kPixels;
    steps = (taps + 3) / 4;
    offsets.resize(groups * kPixels);
    factors.resize(groups * steps * kStep);
    for (int64_t x = 0; x < columns.size; ++x) {
      offsets[x] = columns.begin[x] * kChannels;
      int16_t* lane = factors.data() + (x / kPixels) * steps * kStep + (x % kPixels) * 8;
      for (int64_t t = 0; t < columns.count[x]; ++t) {
        const int32_t weight = columns.weights[x * columns.most + t];
        int16_t* f = lane + (t / 2) * kBack + t % 2;
        for (int64_t c = 0; c < kChannels; ++c) {
          f[2 * c] = int16_t(weight & kLowMask);
          f[2 * c + kHigh] = int16_t(weight >> kLowBits);
        }
      }
    }
    reach = *std::max_element(offsets.begin(), offsets.end()) + steps * 4 * kChannels + 16;
  }
};

}  // namespace placket
