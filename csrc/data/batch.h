#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace placket {

// Which images a step looks at, before any file is read. In a triplet batch of b triplets rows [0,
// b) are anchors, [b, 2b) positives, [2b, 3b) negatives.
struct BatchPlan {
  int64_t epoch = 0;
  // [N] place of each row in the epoch of all ranks together: keys the augmentation, so that it
  // depends on neither rank nor world size.
  std::vector<int64_t> positions;
  std::vector<int64_t> images;  // [N] index into the ImageList
  // [N] the attribute each row was drawn for; empty where a batch has no such role.
  std::vector<int64_t> attributes;
  std::vector<int64_t> values;  // [N] the row's value of that attribute
};

// The plan's numbers lie on the CPU; images and pixels there too, or where the pixels of the
// loader's images are resident.
struct Batch {
  BatchPlan plan;
  at::Tensor images;  // [N, 3, S, S] float32, normalised, channels_last
  // [N, 3, S, S] as `images`, of which only the region is left; empty unless both views are asked.
  at::Tensor segmented;
  at::Tensor attributes;  // [N] int64, or empty
  at::Tensor values;      // [N] int64, or empty
  // [N, A] int64: every image's (first) value of every attribute, -1 where it has none; [N, 0]
  // where the loader has no labels.
  at::Tensor labels;
  // [N, M] bool: every value that an image carries, of the M values of all attributes in order;
  // [N, 0] where the loader has no labels.
  at::Tensor classes;
  // The pictures `images` were made from (after box crop and flip), for crops at full resolution;
  // empty unless kept.
  at::Tensor pixels;   // uint8, the images' [h, w, 3] one after another
  at::Tensor offsets;  // [N] int64, first byte of each
  at::Tensor sizes;    // [N, 2] int64, height and width
};

}  // namespace placket
