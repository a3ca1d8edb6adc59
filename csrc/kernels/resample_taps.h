#pragma once

#include <cmath>
#include <cstdint>

#include "base/host_device.h"
#include "base/unfused.h"

namespace placket {

// Weights are integers, 1.0 = 2^22, so that a sum of weighted 8-bit values fits 31 bits.
constexpr int kWeightBits = 22;
constexpr int32_t kWeightHalf = 1 << (kWeightBits - 1);

// Pillow's filters by its names, each stretched by the scale where it shrinks (antialias).
enum class Filter : uint8_t { kBox, kBilinear, kBicubic, kLanczos };

// Half the width of a filter at scale 1.
PLACKET_HOST_DEVICE constexpr double filter_support(Filter filter) {
  switch (filter) {
    case Filter::kBox:
      return 0.5;
    case Filter::kBilinear:
      return 1.0;
    case Filter::kBicubic:
      return 2.0;
    case Filter::kLanczos:
      return 3.0;
  }
  return 0.0;
}

// The filter at `t`, every operation rounded by itself and in Pillow's order.
template <Filter kFilter>
PLACKET_HOST_DEVICE double filter_value(double t) {
  if constexpr (kFilter == Filter::kBox) return t > -0.5 && t <= 0.5 ? 1.0 : 0.0;
  const double distance = t < 0.0 ? -t : t;
  if constexpr (kFilter == Filter::kBilinear) return distance < 1.0 ? 1.0 - distance : 0.0;
  if constexpr (kFilter == Filter::kBicubic) {
    // Keys' kernel with a = -0.5.
    constexpr double a = -0.5;
    const double d = distance;
    if (d < 1.0) return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
    return d < 2.0 ? (((d - 5.0) * d + 8.0) * d - 4.0) * a : 0.0;
  }
  if constexpr (kFilter == Filter::kLanczos) {
    const auto sinc = [](double x) {
      if (x == 0.0) return 1.0;
      const double angle = x * 3.14159265358979323846;
      return std::sin(angle) / angle;
    };
    return -3.0 <= t && t < 3.0 ? sinc(t) * sinc(t / 3.0) : 0.0;
  }
}

// What one output coordinate takes from one axis of the source: the filter, normalised in double
// over all its taps and then rounded to fixed point.
template <Filter kFilter>
class FilterTaps {
 public:
  FilterTaps() = default;  // trivial, so that shared memory can hold it

  // Output coordinate `target` of `target_size`, for a source of `source_size`; both sizes >= 1.
  PLACKET_HOST_DEVICE FilterTaps(int64_t source_size, int64_t target_size, int64_t target) {
    const double scale = double(source_size) / double(target_size);
    const double stretch = scale < 1.0 ? 1.0 : scale;
    const double radius = filter_support(kFilter) * stretch;
    inverse_stretch_ = 1.0 / stretch;
    center_ = multiply_unfused(double(target) + 0.5, scale);
    const double first = center_ - radius + 0.5, last = center_ + radius + 0.5;
    begin_ = int64_t(first);
    end_ = int64_t(last);
    if (begin_ < 0) begin_ = 0;
    if (end_ > source_size) end_ = source_size;
    total_ = 0.0;
    for (int64_t i = begin_; i < end_; ++i) total_ += value(i);
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
    const double share = value(source) / total_;
    const double weight = multiply_unfused(share, double(1 << kWeightBits));
    const double rounded = weight < 0.0 ? weight - 0.5 : weight + 0.5;
    return int32_t(rounded);
  }

  // Upper bound of end() - begin() for an axis.
  static int64_t most(int64_t source_size, int64_t target_size) {
    const double scale = double(source_size) / double(target_size);
    return 2 * int64_t(std::ceil(filter_support(kFilter) * (scale < 1.0 ? 1.0 : scale))) + 1;
  }

 private:
  PLACKET_HOST_DEVICE double value(int64_t source) const {
    return filter_value<kFilter>(
        multiply_unfused(double(source) - center_ + 0.5, inverse_stretch_));
  }

  double center_, inverse_stretch_, total_;
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

// A sum of weighted 8-bit values, started at kWeightHalf, back to 8 bits. Bicubic and Lanczos have
// negative weights, and a very long sum of rounded ones may exceed 1.
PLACKET_HOST_DEVICE inline uint8_t round_to_uint8(int32_t sum) {
  const int32_t value = sum >> kWeightBits;
  return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value);
}

// The one expression for a normalised value: three roundings in float32, no product and sum that
// a compiler could fuse.
PLACKET_HOST_DEVICE inline float normalize_uint8(uint8_t value, float mean, float std) {
  return (float(value) / 255.0f - mean) / std;
}

}  // namespace placket
