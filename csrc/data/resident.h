#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "data/augment.h"
#include "data/batch.h"
#include "data/image_list.h"
#include "data/picture.h"
#include "data/store.h"

namespace placket {

// The pixels of a whole store in a device's memory.
struct ResidentPixels {
  std::shared_ptr<const Store> store;
  at::Tensor pixels;   // [bytes] uint8, the records' [h, w, 3] one after another
  at::Tensor offsets;  // [records] int64, first byte of each
  at::Tensor sizes;    // [records, 2] int64, height and width
};

// Copies them. Throws ValueError where the store holds files, or this build has no kernels for the
// device.
ResidentPixels make_resident(std::shared_ptr<const Store> store, at::Device device);

// Throws ValueError where batches cannot be made of the images' resident pixels: they were packed
// with another orientation, or need more than cutting, bilinear resizing in Pillow's arithmetic,
// mirroring and normalising; `user` begins the sentence.
void check_resident(const char* user, const ImageList& images, const Preprocess& preprocess,
                    const Augment& augment);

// frame_picture of an image; throws ValueError also where the frame exceeds crop_resize's limits.
Frame frame_resident(const ImageList& images, int64_t image, const Preprocess& preprocess,
                     const Augment& augment, RandomStream& random);

// Makes Batch::images, and with keep_pixels pixels, offsets and sizes, on the pixels' device of one
// frame for each image of the plan. One copy of a few numbers for each image goes there; nothing is
// waited for.
void make_on_device(const ImageList& images, const std::vector<Frame>& frames,
                    const Preprocess& preprocess, bool keep_pixels, Batch& batch);

}  // namespace placket
