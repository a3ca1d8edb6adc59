#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// The square box of an image that an attention map points at (ASEN++, IEEE TIP 2021; RPF, SIGIR
// 2023). The map belongs to the centre square of the image with its short side resized to `view`:
//
//   1. upsampled to view x view, bilinear, half-pixel centres, replicated border
//   2. min-max normalised, times 255, truncated to 8 bits
//   3. kept where greater than floor(255 threshold)
//   4. bounding box of all that is kept: left, top, w, h
//   5. square of side d = max(w, h) about (left + floor(w/2), top + floor(h/2)), pushed into the
//   view
//   6. start and side times short side / view, truncated (the side is at least one pixel)
//   7. start plus half of the long side's excess over the short side, rounded down
//
// Where the view is `squashed`, the whole image resized to it whatever its ratio, 6. takes each
// axis by its own side over `view`, which makes a box of the image's ratio, and 7. adds nothing.
//
// As published, a square of odd side may end one pixel of the view behind its border; crop_resize
// then reads zeros. A flat map, and one with a value that is not finite, gives the whole centre
// square. Each product and sum is rounded to float32 by itself, so CPU and CUDA agree in every bit.
// No gradient flows through a box. Under autocast a bfloat16 map is taken as float32. Sizes are
// checked on the CPU; on CUDA, where that would need a synchronisation, sides below 1 count as 1.
at::Tensor region_box(const at::Tensor& attention,  // [N, h, w] float32, h and w at most view
                      const at::Tensor& sizes,      // [N, 2] int64: height, width of the original
                      double threshold,             // in [0, 1); 0.1 as published
                      int64_t view,                 // 224 as published
                      bool squashed);
// returns [N, 4] int64: x0 y0 x1 y1 in pixels of the original, x1 y1 exclusive

}  // namespace placket
