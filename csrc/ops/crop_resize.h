#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace placket {

// Boxes cut out of a ragged batch of 8-bit RGB images, each resized to height x width and
// normalised, (v / 255 - mean) / std in float32. Image i is the [h, w, 3] bytes at offsets[i] of
// `pixels`, with h, w = sizes[i]. The 8-bit values are those of Pillow 13's
// Image.crop(box).resize((width, height), BILINEAR) in every bit, with its antialiasing, fixed
// point and order of passes; parts of a box outside its image are black. With `windows` the box is
// resized to (resized height, resized width), of which the crop is the height x width pixels from
// (top, left) on. `flip` mirrors a crop.
//
// float32 or bfloat16 output, of equal bits on CPU and CUDA; deterministic; not differentiable.
// Sides of boxes are at least one pixel and coordinates at most 2^20 from the image's corner; sides
// of resized boxes are at most 2^34 pixels. On the CPU the values of all arguments are checked. On
// CUDA that would need a synchronisation: there a crop whose index, box, window, offset or size is
// not valid is black.
at::Tensor crop_resize(const at::Tensor& pixels,       // [L] uint8
                       const at::Tensor& offsets,      // [N] int64, in bytes
                       const at::Tensor& sizes,        // [N, 2] int64: height, width
                       const at::Tensor& boxes,        // [M, 4] int64: x0 y0 x1 y1, x1 y1 exclusive
                       const at::Tensor& image_index,  // [M] int64, in [0, N)
                       int64_t height, int64_t width,  //
                       at::ArrayRef<double> mean, at::ArrayRef<double> std,  // of the 3 channels
                       at::ScalarType dtype, bool channels_last,
                       const std::optional<at::Tensor>& flip,      // [M] bool
                       const std::optional<at::Tensor>& windows);  // [M, 4] int64
// returns [M, 3, height, width]

}  // namespace placket
