#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace placket {

using Box = std::array<int64_t, 4>;  // x0 y0 x1 y1 in pixels; x1, y1 exclusive

// The images of one split as the loader sees them: absolute paths, and for sets that have them the
// garment's box.
struct ImageList {
  std::vector<std::string> paths;
  std::vector<Box> boxes;  // empty, or one for every path
};

// From a decoded image to a trunk's input (data/picture.h has the exact steps); saved in every
// checkpoint, and the one implementation for training, evaluation, indexing and search.
struct Preprocess {
  int64_t size = 224;  // side of the square input
  // "crop": short side to `size`, centre crop (the reference). "pad": the box grown to a square
  // about its centre, zeros outside the image, so that nothing is cut off. "target_pad": a box
  // longer than target_ratio grown to that ratio, then as "crop" (CLIP4Cir's TargetPad).
  std::string fit = "crop";
  double target_ratio = 1.25;  // of the long to the short side; of "target_pad" alone
  // The filter of resizing, one of Pillow's by its name: "bilinear", "bicubic", "box", "lanczos".
  std::string interpolation = "bilinear";
  // "pillow" has every bit of Pillow. "float" rounds nothing to 8 bits and is faster, within about
  // one grey level, beside clipped corners more (kernels/resample.h).
  std::string arithmetic = "pillow";
  // "apply" turns pictures upright by their EXIF tag, "ignore" takes the pixels as stored.
  std::string orientation = "apply";
  // Share of the box's width and height added on each side, where the set has boxes.
  double box_margin = 0.0;
  std::array<float, 3> mean = {0.485f, 0.456f, 0.406f};
  std::array<float, 3> std = {0.229f, 0.224f, 0.225f};
};

}  // namespace placket
