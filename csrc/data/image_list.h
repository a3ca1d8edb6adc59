#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace placket {

// The images of one split as the loader sees them: absolute paths, and for sets that have them the
// garment's box.
struct ImageList {
  std::vector<std::string> paths;
  std::vector<std::array<int64_t, 4>> boxes;  // empty, or x0 y0 x1 y1 (exclusive) for every path
};

// From a decoded image to a trunk's input; saved in every checkpoint, and the one implementation
// for training, evaluation, indexing and search.
struct Preprocess {
  int64_t size = 224;  // side of the square input
  std::string fit =
      "crop";  // "crop": short side to `size`, centre crop (the reference). "pad": the box grown to
               // a square about its centre, zeros outside the image, so that nothing is cut off
  double box_margin =
      0.0;  // share of the box's width and height added on each side, where the set has boxes
  std::array<float, 3> mean = {0.485f, 0.456f, 0.406f};
  std::array<float, 3> std = {0.229f, 0.224f, 0.225f};
};

// Random changes in training, keyed by (seed, epoch, position in the epoch).
struct Augment {
  double flip = 0.0;        // probability of a horizontal flip
  double crop_scale = 1.0;  // lower end of the area a random resized crop keeps; 1 switches it off
};

}  // namespace placket
