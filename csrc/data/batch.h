#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace placket {

// Which images a step looks at, before any file is read. In a triplet batch of b triplets rows [0,
// b) are anchors, [b, 2b) positives, [2b, 3b) negatives.
struct BatchPlan {
  int64_t epoch = 0;
  int64_t first = 0;            // position of row 0 in the epoch: keys the augmentation
  std::vector<int64_t> images;  // [N] index into the ImageList
  std::vector<int64_t>
      attributes;  // [N] the attribute each row was drawn for; empty where a batch has no such role
  std::vector<int64_t> values;  // [N] the row's value of that attribute
};

struct Batch {
  BatchPlan plan;
  at::Tensor images;      // [N, 3, S, S] float32, normalised, channels_last
  at::Tensor attributes;  // [N] int64, or empty
  at::Tensor values;      // [N] int64, or empty
  at::Tensor
      labels;  // [N, A] int64: every image's (first) value of every attribute, -1 where it has none
  // The pictures `images` were made from (after box crop and flip), for crops at full resolution;
  // empty unless kept.
  at::Tensor pixels;   // uint8, the images' [h, w, 3] one after another
  at::Tensor offsets;  // [N] int64, first byte of each
  at::Tensor sizes;    // [N, 2] int64, height and width
};

}  // namespace placket
