#pragma once

#include <cfloat>
#include <cstdint>

#include "base/host_device.h"
#include "base/unfused.h"

namespace placket {

// Where one coordinate of an upsampled map reads its source: OpenCV's INTER_LINEAR (half-pixel
// centres, replicated border, the position rounded to float32).
struct LinearTap {
  int64_t low, high;
  float low_weight, high_weight;

  PLACKET_HOST_DEVICE LinearTap(int64_t source, int64_t target, int64_t i) {
    const double scale = 1.0 / (double(target) / double(source));
    const float position = float(multiply_unfused(double(i) + 0.5, scale) - 0.5);
    low = position < 0.0f ? 0 : int64_t(position);
    high_weight = position < 0.0f ? 0.0f : position - float(low);
    if (low >= source - 1) {
      low = source - 1;
      high_weight = 0.0f;
    }
    low_weight = 1.0f - high_weight;
    high = low < source - 1 ? low + 1 : low;
  }
};

PLACKET_HOST_DEVICE inline float blend(float low, float low_weight, float high, float high_weight) {
  return add_unfused(multiply_unfused(low, low_weight), multiply_unfused(high, high_weight));
}

// What min-max normalisation, 8 bits by truncation and the threshold keep of the upsampled map.
// Monotone in `value`, so a row is kept where its greatest value is.
struct Kept {
  float least, range;
  int threshold;

  // False for a flat map and for one whose values are not finite.
  PLACKET_HOST_DEVICE bool usable() const { return range > 0.0f && range <= FLT_MAX; }

  PLACKET_HOST_DEVICE bool operator()(float value) const {
    return int(multiply_unfused((value - least) / range, 255.0f)) > threshold;
  }
};

// Start of a side of `length` about the middle of [begin, begin + extent), pushed into the view.
PLACKET_HOST_DEVICE inline int64_t square_begin(int64_t begin, int64_t extent, int64_t length,
                                                int64_t view) {
  const int64_t middle = begin + extent / 2;
  if (middle + length / 2 > view) return view - length;
  return middle < length / 2 ? 0 : middle - length / 2;
}

// From the kept area in the view, [left, right) x [top, bottom), to the box in the original's
// pixels.
PLACKET_HOST_DEVICE inline void write_box(int64_t left, int64_t top, int64_t right, int64_t bottom,
                                          int64_t view, bool squashed, const int64_t* size,
                                          int64_t* box) {
  const int64_t extent_x = right - left, extent_y = bottom - top;
  const int64_t side = extent_x > extent_y ? extent_x : extent_y;
  const int64_t image_height = size[0] < 1 ? 1 : size[0];
  const int64_t image_width = size[1] < 1 ? 1 : size[1];
  const int64_t shorter = image_width < image_height ? image_width : image_height;
  const int64_t shown_height = squashed ? image_height : shorter;
  const int64_t shown_width = squashed ? image_width : shorter;
  const auto original = [&](int64_t length, int64_t shown) {
    return int64_t(multiply_unfused(double(length) / double(view), double(shown)));
  };
  int64_t x = original(square_begin(left, extent_x, side, view), shown_width);
  int64_t y = original(square_begin(top, extent_y, side, view), shown_height);
  x += (image_width - shown_width) / 2;
  y += (image_height - shown_height) / 2;
  // A few pixels of the view may be less than one of a small original.
  const int64_t box_width = original(side, shown_width);
  const int64_t box_height = original(side, shown_height);
  box[0] = x;
  box[1] = y;
  box[2] = x + (box_width < 1 ? 1 : box_width);
  box[3] = y + (box_height < 1 ? 1 : box_height);
}

}  // namespace placket
