#pragma once

#include <cstdint>

namespace placket {

// A square of side `size` out of a picture: the short side resized to `size`, then the centre
// (torchvision's Resize(size) and CenterCrop(size), with their roundings).
struct FitWindow {
  int64_t resized_height, resized_width;
  int64_t top, left;
};

inline FitWindow fit_window(int64_t image_height, int64_t image_width, int64_t size) {
  // int(round(excess / 2.0)) in Python: halves go to the even integer.
  const auto half = [](int64_t excess) { return excess / 2 + (excess % 4 == 3 ? 1 : 0); };
  if (image_width <= image_height) {
    const int64_t height = size * image_height / image_width;
    return {height, size, half(height - size), 0};
  }
  const int64_t width = size * image_width / image_height;
  return {size, width, 0, half(width - size)};
}

}  // namespace placket
