#pragma once

#include <cstdint>

#include "base/host_device.h"
#include "base/unfused.h"

namespace placket {

// Weights are integers, 1.0 = 2^22, so that a sum of weighted 8-bit values fits 31 bits.
constexpr int kWeightBits = 22;
constexpr int32_t kWeightHalf = 1 << (kWeightBits - 1);

// What one output coordinate takes from one axis of the source: Pillow's antialiased triangle
// filter ("BILINEAR"), normalised in double over all its taps and then rounded to fixed point.
class ResampleTaps {
 public:
  ResampleTaps() = default;  // trivial, so that shared memory can hold it

  // Output coordinate `target` of `target_size`, for a source of `source_size`; both sizes >= 1.
  PLACKET_HOST_DEVICE ResampleTaps(int64_t source_size, int64_t target_size, int64_t target) {
    const double scale = double(source_size) / double(target_size);
    const double radius = scale < 1.0 ? 1.0 : scale;
    inverse_radius_ = 1.0 / radius;
    center_ = multiply_unfused(double(target) + 0.5, scale);
    begin_ = int64_t(center_ - radius + 0.5);
    end_ = int64_t(center_ + radius + 0.5);
    if (begin_ < 0) begin_ = 0;
    if (end_ > source_size) end_ = source_size;
    total_ = 0.0;
    for (int64_t i = begin_; i < end_; ++i) total_ += triangle(i);
  }

  // Leaves out taps outside [first, last), which read zeros; the others keep their weights.
  PLACKET_HOST_DEVICE void clip(int64_t first, int64_t last) {
    if (begin_ < first) begin_ = first;
    if (end_ > last) end_ = last;
    if (end_ < begin_) end_ = begin_;
  }

  PLACKET_HOST_DEVICE int64_t begin() const { return begin_; }
  PLACKET_HOST_DEVICE int64_t end() const { return end_; }

  PLACKET_HOST_DEVICE int32_t weight(int64_t source) const {
    return int32_t(0.5 + multiply_unfused(triangle(source) / total_, double(1 << kWeightBits)));
  }

  // Upper bound of end() - begin() for an axis.
  static int64_t most(int64_t source_size, int64_t target_size) {
    const int64_t radius = (source_size + target_size - 1) / target_size;
    return 2 * (radius < 1 ? 1 : radius) + 1;
  }

 private:
  PLACKET_HOST_DEVICE double triangle(int64_t source) const {
    const double t = multiply_unfused(double(source) - center_ + 0.5, inverse_radius_);
    const double distance = t < 0.0 ? -t : t;
    return distance < 1.0 ? 1.0 - distance : 0.0;
  }

  double center_, inverse_radius_, total_;
  int64_t begin_, end_;
};

// Which pass comes first decides the last bit, since each rounds to 8 bits. Pillow 13 begins with
// the vertical pass where the height shrinks by more than twice as many pixels as the width
// (python-pillow/Pillow#9549); before, and in every other case, the horizontal pass comes first.
PLACKET_HOST_DEVICE inline bool vertical_first(int64_t height, int64_t width,
                                               int64_t resized_height, int64_t resized_width) {
  const int64_t rows = height - resized_height, columns = width - resized_width;
  return rows > 0 && rows > 2 * columns;
}

// A sum of weighted 8-bit values, started at kWeightHalf, back to 8 bits. It is never negative; a
// very long sum of rounded weights may exceed 1.
PLACKET_HOST_DEVICE inline uint8_t round_to_uint8(int32_t sum) {
  const int32_t value = sum >> kWeightBits;
  return uint8_t(value > 255 ? 255 : value);
}

// The one expression for a normalised value: three roundings in float32, no product and sum that
// a compiler could fuse.
PLACKET_HOST_DEVICE inline float normalize_uint8(uint8_t value, float mean, float std) {
  return (float(value) / 255.0f - mean) / std;
}

}  // namespace placket
