#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace placket {

// Writes the part [x0, x1) x [y0, y1) of an 8-bit RGB image, zeros where it leaves the image,
// mirrored where `flip` is set; [y1 - y0, x1 - x0, 3].
void cut_picture_cpu(const uint8_t* image, int64_t height, int64_t width, const int64_t* box,
                     bool flip, uint8_t* out);

// The same for many images; all arrays lie on the device. Trusts the values of its arguments.
struct CutPictures {
  const uint8_t* pixels;
  const int64_t* offsets;      // [images], first byte of each
  const int64_t* sizes;        // [images, 2], height and width
  const int64_t* image_index;  // [pictures]
  const int64_t* boxes;        // [pictures, 4], x0 y0 x1 y1; at most kCropLimit from 0
  const bool* flip;            // [pictures]
  const int64_t* out_offsets;  // [pictures], first byte of each picture in `out`
  int64_t pictures;
};
const char* launch_cut_pictures(const CutPictures& in, uint8_t* out, Stream stream);

}  // namespace placket
