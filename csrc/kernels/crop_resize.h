#pragma once

#include <cstdint>

#include "base/host_device.h"
#include "kernels/fit_window.h"

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
  const int64_t* windows;      // [crops, 4], or null: the box becomes the whole crop
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

// Sides of a resized box: that of the longest box in a crop of 8,192 pixels.
constexpr int64_t kResizedLimit = int64_t{1} << 34;

// How a box is resized, and where the crop lies in it.
PLACKET_HOST_DEVICE inline FitWindow window_of(const CropResize& in, int64_t crop) {
  if (in.windows == nullptr) return {in.height, in.width, 0, 0};
  const int64_t* window = in.windows + 4 * crop;
  return {window[0], window[1], window[2], window[3]};
}

// Whether a crop of this size lies inside the resized box, which keeps the limit.
PLACKET_HOST_DEVICE inline bool valid_window(const FitWindow& window, int64_t height,
                                             int64_t width) {
  return 0 < window.resized_height && window.resized_height <= kResizedLimit &&  //
         0 < window.resized_width && window.resized_width <= kResizedLimit &&    //
         0 <= window.top && window.top <= window.resized_height - height &&      //
         0 <= window.left && window.left <= window.resized_width - width;
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

// A crop whose image, box or window is not valid is black.
template <class T>
const char* launch_crop_resize(const CropResize& in, T* out, Stream stream);

}  // namespace placket
