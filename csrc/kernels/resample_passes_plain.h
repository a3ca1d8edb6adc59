#pragma once

#include <cstdint>

#include "kernels/resample_axis.h"
#include "kernels/resample_taps.h"

namespace placket {

// The sources of one output row, `count` of them.
struct WeightedRows {
  const uint8_t* const* rows;
  const int32_t* weights;
  int64_t count;
};

// avx2 and avx512 hold the same classes for vectors, with the same bits.
namespace plain {

// The two passes of Pillow's arithmetic: 22-bit fixed-point weights, 8 bits after either pass.
class Passes {
 public:
  // Bytes that `horizontal` may write past the end of its row.
  static constexpr int64_t kSpill = 0;

  explicit Passes(const ResampleAxis& columns) : columns_(columns) {}

  // How far past the start of an image row `horizontal` may read, in bytes.
  int64_t reach() const { return columns_.source_end * kChannels; }

  // Image rows that had best go through the horizontal pass together.
  static constexpr int64_t kTogether = 1;

  // The window's columns of kRows image rows.
  template <int64_t kRows>
  void horizontal(const uint8_t* const* rows, uint8_t* const* outs) const {
    for (int64_t r = 0; r < kRows; ++r) horizontal_row(rows[r], outs[r]);
  }

  // Bytes [begin, end) of the weighted sum of rows.
  static void vertical(const WeightedRows& in, int64_t begin, int64_t end, uint8_t* out) {
    for (int64_t i = begin; i < end; ++i) {
      int32_t sum = kWeightHalf;
      for (int64_t t = 0; t < in.count; ++t) sum += in.weights[t] * in.rows[t][i];
      out[i] = round_to_uint8(sum);
    }
  }

 private:
  void horizontal_row(const uint8_t* row, uint8_t* out) const {
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

  const ResampleAxis& columns_;
};

}  // namespace plain
}  // namespace placket
