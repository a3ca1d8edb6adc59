#pragma once

#include <cstdint>

#include "kernels/resample_taps.h"

namespace placket {

// One picture to cut out: `box` of a uint8 RGB image, resized as a whole to resized_height x
// resized_width with one of Pillow's antialiased filters (every bit of Pillow 13: 22-bit fixed
// point, rounded to 8 bits between the passes, its order of passes), of which the window at (top,
// left) of height x width is written. Parts of the box outside the image read zeros, as Pillow's
// crop does. Only the rows and columns that the window needs are computed.
struct ResampleJob {
  const uint8_t* image;  // [image_height, image_width, 3]
  int64_t image_height, image_width;
  int64_t x0, y0, x1, y1;  // box in pixels of the image; x1, y1 exclusive; at least one pixel
  int64_t resized_height, resized_width;
  int64_t top, left;  // of the written window, which lies inside the resized picture
  bool flip;          // mirror the written window
  Filter filter = Filter::kBilinear;
};

// All run in the calling thread, with AVX-512 (F and BW) or AVX2 where the processor has it and
// ATEN_CPU_CAPABILITY (torch's own switch: "default", "avx2" or "avx512") does not forbid it, float
// arithmetic with AVX2 at most; the bits are the same with each and without.

// 8-bit result, [height, width, 3].
void resample_uint8_cpu(const ResampleJob& job, int64_t height, int64_t width, uint8_t* out);

// (value / 255 - mean) / std in float32 by a 256-entry table for each channel; T is float or
// BFloat16. Element (c, y, x) goes to out[c * channel_stride + y * row_stride + x * column_stride].
template <class T>
void resample_normalized_cpu(const ResampleJob& job, int64_t height, int64_t width,
                             const float (&mean)[3], const float (&std)[3], int64_t channel_stride,
                             int64_t row_stride, int64_t column_stride, T* out);

// The same window by another arithmetic, for speed: exact sums over the rows, float32 sums over the
// columns, clipped to [0, 255], then normalised by one multiplication and one addition; nothing is
// rounded to 8 bits. Pillow's two roundings make it differ from Pillow by at most 1.001 grey levels
// (box, bilinear), 1.13 (bicubic) and 1.28 (Lanczos). Where the last two ring beyond black or white
// in both directions, beside corners, Pillow clips after either pass and this after the last: there
// photographs had up to 17 levels, in fewer than 2 of 1,000 values. out is [height, width, 3].
void resample_float_cpu(const ResampleJob& job, int64_t height, int64_t width,
                        const float (&mean)[3], const float (&std)[3], float* out);

}  // namespace placket
