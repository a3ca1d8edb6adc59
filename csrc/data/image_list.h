#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/decode.h"
#include "data/mask.h"
#include "data/store.h"
#include "data/text_column.h"

namespace placket {

struct ResidentPixels;

// Pixels that were decoded, or that a store maps; they live as long as this and the store.
struct LoadedImage {
  Image decoded;
  ImageView view;

  LoadedImage(Image image) : decoded(std::move(image)), view(decoded) {}  // NOLINT: explicit enough
  explicit LoadedImage(ImageView mapped) : view(mapped) {}
};

// The images of one split as the loader sees them: loose files or records of a store, and for sets
// that have them the garment's box. Where rows are regions, several may name one file.
struct ImageList {
  std::string root;                             // the folder, or the store's path
  std::shared_ptr<const TextColumn> filenames;  // relative to it
  std::shared_ptr<const Store> store;           // null for loose files
  std::vector<int64_t> records;                 // of the store, one for every image
  std::vector<Box> boxes;                       // empty, or one for every image
  std::shared_ptr<const MaskColumn> masks;      // null, or which pixels of it each image shows
  // Null, or the store's pixels on a device, of which loaders then make their batches there.
  std::shared_ptr<const ResidentPixels> resident;

  int64_t size() const { return filenames == nullptr ? 0 : filenames->size(); }
  // What messages call an image; for loose files its path.
  std::string path(int64_t image) const;
  // Throws std::runtime_error "<path>: <cause>" as decode_file does, or where a store's pixels were
  // packed with another orientation. `part` as for decode_file.
  LoadedImage load(int64_t image, Orientation orientation, const PartOf& part = {}) const;
  // What messages call the mask of an image, its path.
  std::string mask_path(int64_t image) const;
  // Those images in that order.
  ImageList select(const std::vector<int64_t>& images) const;
};

// Throws ValueError where the columns do not fit together; `user` begins the sentence.
void check_images(const char* user, const ImageList& images);

// From a decoded image to a trunk's input (data/picture.h has the exact steps); saved in every
// checkpoint, and the one implementation for training, evaluation, indexing and search.
struct Preprocess {
  int64_t size = 224;  // side of the square input
  // "crop": short side to `size`, centre crop (the reference). "pad": the box grown to a square
  // about its centre, zeros outside the image, so that nothing is cut off. "target_pad": a box
  // longer than target_ratio grown to that ratio, then as "crop" (CLIP4Cir's TargetPad). "squash":
  // the whole box, each axis resized to `size` by itself.
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
