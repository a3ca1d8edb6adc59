#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace placket {

// See ops/crop_resize.h. All arrays are contiguous and on the device of the kernel.
struct CropResize {
  const uint8_t* pixels;
  int64_t bytes;           // length of pixels
  const int64_t* offsets;  // [images]
  const int64_t* sizes;    // [images, 2]
  int64_t images;
  const int64_t* boxes;        // [crops, 4]
  const int64_t* image_index;  // [crops]
  const bool* flip;            // [crops], or null: none
  int64_t crops, height, width;
  float mean[3], std[3];
  bool channels_last;
};

// Coordinates of a box lie in [-kCropLimit, kCropLimit]: sums over its taps then fit 32 bits.
constexpr int64_t kCropLimit = 1 << 20;

// Whether a box has an area and keeps the limit.
PLACKET_HOST_DEVICE inline bool valid_box(const int64_t* box) {
  return -kCropLimit <= box[0] && box[0] < box[2] && box[2] <= kCropLimit &&
         -kCropLimit <= box[1] && box[1] < box[3] && box[3] <= kCropLimit;
}

// Whether an image has an area and lies within the pixels.
PLACKET_HOST_DEVICE inline bool valid_image(int64_t offset, int64_t height, int64_t width,
                                            int64_t bytes) {
  // Sides are compared before they are multiplied, which could overflow.
  return offset >= 0 && offset <= bytes && height > 0 && width > 0 && height <= bytes &&
         width <= bytes / height && height * width <= (bytes - offset) / 3;
}

// Trusts the values of its arguments.
template <class T>
void crop_resize_cpu(const CropResize& in, T* out);

// A crop whose image or box is not valid is black.
template <class T>
const char* launch_crop_resize(const CropResize& in, T* out, Stream stream);

}  // namespace placket
