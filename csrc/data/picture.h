#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "data/augment.h"
#include "data/batch.h"
#include "data/decode.h"
#include "data/image_list.h"
#include "data/mask.h"
#include "kernels/fit_window.h"
#include "kernels/resample_taps.h"

namespace placket {

// Where a model's input comes from in a decoded image, everything in whole pixels. The picture is
// the part [x0, x1) x [y0, y1), which may leave the image (zeros there), mirrored where `flip` is
// set. The input is `fit` of that picture.
struct Frame {
  int64_t x0 = 0, y0 = 0, x1 = 0, y1 = 0;
  FitWindow fit{};
  bool flip = false;
};

// 1. The box (the whole image without one) gets round(box_margin * side) on each side and is cut to
//    the image; one that does not overlap the image is a ValueError.
// 2. "pad": it becomes a square about its centre. The shorter axis is extended by half the
//    difference on each side (the odd pixel after it), over photo where there is photo, over zeros
//    beyond.
//    "target_pad": either side of an axis gets trunc((long / target_ratio - axis) / 2) pixels in
//    the same way where that is positive, `long` the box's longer axis; computed in double.
// 3. With `random` (keyed to this row): mirrored with probability Augment::flip. A part of the
//    picture of the same aspect ratio is kept, its share of the area uniform in [crop_scale, 1],
//    its place uniform. Then the whole picture is moved by Augment::random_crop: shifts uniform in
//    [-padding, padding] whole pixels of the input along x and y, each rounded to pixels of the
//    picture. What comes in at an edge is photo where the image goes on, where torchvision's
//    padding has zeros, and zeros beyond the image. The aspect ratio stays, so that what is found
//    in the input maps back to the picture by the one rule of step 4.
// 4. The short side is resized to `size` and the centre square kept (kernels/fit_window.h).
//    "squash": both sides are resized to `size`.
// Boxes and sides are those of the picture after its orientation was applied or ignored.
Frame frame_picture(int64_t height, int64_t width, const std::optional<Box>& box,
                    const Preprocess& preprocess, const Augment& augment = {},
                    RandomStream* random = nullptr);

// Where the input lies in the resized part of the image before that is mirrored: the kernels mirror
// what they write.
FitWindow source_window(const Frame& frame, int64_t size);

// The part of an image of these sides that write_input reads of a frame.
Box input_part(int64_t height, int64_t width, const Frame& frame, const Preprocess& preprocess);

// Writes the input of a frame to out, [size, size, 3] float32 normalised.
void write_input(const ImageView& image, const Frame& frame, const Preprocess& preprocess,
                 float* out);

// The segmented view of the input of a frame, [size, size, 3]: every value times the share of its
// place that the region covers, so that the rest is 0, the mean. The share is that of the mask, as
// a picture of 0 and 255, brought to the input by the same frame: bilinear whatever the picture's
// filter, which would ring, in Pillow's arithmetic, over 255. Outside the image nothing is covered,
// and of a region without pixels nothing is left. `input` and `out` may be the same. Throws
// std::runtime_error, `name` first, where the mask is not of the image's height and width.
void segment_input(const Region& region, const std::string& name, int64_t height, int64_t width,
                   const Frame& frame, const Preprocess& preprocess, const float* input,
                   float* out);

// The whole image, its short side reduced to `size` where it is longer; the long side as when an
// input is made (kernels/fit_window.h), bilinear.
Image shrink(const ImageView& image, int64_t size);

// The frame's picture, [y1 - y0, x1 - x0, 3], and the frame by which it gives the input that the
// image gives by the first.
Image cut_picture(const ImageView& image, const Frame& frame);
Frame whole_picture(const Frame& frame);

// Of the fields of the same names, which must be among the known ones.
Filter filter_of(const Preprocess& preprocess);
Orientation orientation_of(const Preprocess& preprocess);

// Throws ValueError where a field is out of range; `user` begins the sentence.
void check_preprocess(const char* user, const Preprocess& preprocess);

// A batch of one image, without labels; pixels are kept, and with a region both views made. The
// same code as the loader's, for search and inspection.
Batch make_batch(const ImageView& image, const std::optional<Box>& box,
                 const Preprocess& preprocess, const Region* region = nullptr);

// Fills pixels (in pinned memory if wanted), offsets and sizes.
void keep_pictures(const std::vector<Image>& pictures, bool pin_memory, Batch& batch);

}  // namespace placket
