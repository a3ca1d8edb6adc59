#pragma once

#include <array>
#include <cstdint>

#include "base/random.h"
#include "data/decode.h"

namespace placket {

// torchvision.transforms' ColorJitter: factors uniform in [max(0, 1 - x), 1 + x], the hue turned by
// a share of the circle uniform in [-hue, hue], in random order; each in Pillow's 8-bit arithmetic.
struct ColorJitter {
  double brightness = 0.0, contrast = 0.0, saturation = 0.0;
  double hue = 0.0;  // at most 0.5
  double p = 1.0;    // probability of any change

  bool active() const {
    return p > 0 && (brightness > 0 || contrast > 0 || saturation > 0 || hue > 0);
  }
};

// GaussianBlur of the input, reflected at its edges: sigma uniform in `sigma`, in pixels of the
// input.
struct GaussianBlur {
  int64_t kernel_size = 9;  // odd
  std::array<double, 2> sigma = {0.1, 2.0};
  double p = 0.0;
};

// RandomErasing: a rectangle of the normalised input, its share of the area uniform in `scale`, the
// logarithm of height / width uniform in that of `ratio`, becomes `value`.
struct RandomErasing {
  double p = 0.0;
  std::array<double, 2> scale = {0.02, 0.33};
  std::array<double, 2> ratio = {0.3, 3.3};
  double value = 0.0;
};

// RandomCrop of the input padded by zeros on each side: a shift of up to `padding` pixels of the
// input along either axis, every whole one as likely (data/picture.h has the exact steps).
struct RandomCrop {
  int64_t padding = 0;  // in pixels of the input; 0 switches it off
};

// Random changes in training, keyed by (seed, epoch, position in the epoch).
struct Augment {
  double flip = 0.0;  // probability of a horizontal flip
  // Lower end of the share of the area that a random resized crop keeps, the aspect ratio kept; 1
  // switches it off.
  double crop_scale = 1.0;
  RandomCrop random_crop;
  ColorJitter color_jitter;
  double grayscale = 0.0;  // probability
  GaussianBlur blur;
  RandomErasing erasing;

  bool changes_colors() const { return color_jitter.active() || grayscale > 0; }
};

// Throws ValueError where a field is out of range; `user` begins the sentence.
void check_augment(const char* user, const Augment& augment);

// Jitter, then grayscale, of a whole picture before it is resized, so that kept pictures and inputs
// look alike.
void change_colors(const Augment& augment, RandomStream& random, Image& picture);

// Blur, then erasing, of a normalised input, [size, size, 3].
void change_input(const Augment& augment, RandomStream& random, int64_t size, float* input);

// Pillow's ImageEnhance by a factor, and torchvision's adjust_hue by a share of the circle in
// [-0.5, 0.5]; every bit theirs.
void adjust_brightness(Image& picture, double factor);
void adjust_contrast(Image& picture, double factor);
void adjust_saturation(Image& picture, double factor);
void adjust_hue(Image& picture, double share);
void to_grayscale(Image& picture);

}  // namespace placket
