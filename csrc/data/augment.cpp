#include "data/augment.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace placket {
namespace {

constexpr int64_t kColors = 3;

// Pillow's weights of ITU-R 601-2, 16 bits.
uint8_t luma(const uint8_t* rgb) {
  return uint8_t((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16);
}

// from + factor (to - from), as Image.blend rounds it.
uint8_t blend(uint8_t from, uint8_t to, float factor) {
  const float value = float(from) + factor * float(int(to) - int(from));
  return value <= 0.0f ? 0 : value >= 255.0f ? 255 : uint8_t(value);
}

template <class F>
void for_each_pixel(Image& picture, const F& f) {
  uint8_t* const end = picture.pixels.data() + picture.pixels.size();
  for (uint8_t* pixel = picture.pixels.data(); pixel < end; pixel += kColors) f(pixel);
}

// Pillow's conversion to HSV, the hue turned by `turn` 256ths of the circle, and back.
void turn_hue(uint8_t* rgb, uint8_t turn) {
  const int r = rgb[0], g = rgb[1], b = rgb[2];
  const int most = std::max({r, g, b}), least = std::min({r, g, b});
  if (most == least) return;
  const float range = float(most - least);
  const float from_red = float(most - r) / range, from_green = float(most - g) / range,
              from_blue = float(most - b) / range;
  float hue = 0;
  if (r == most) {
    hue = from_blue - from_green;
  } else if (g == most) {
    hue = float(2.0 + from_red - from_blue);
  } else {
    hue = float(4.0 + from_green - from_red);
  }
  hue = float(std::fmod(hue / 6.0 + 1.0, 1.0));
  const auto clip = [](int value) { return uint8_t(std::clamp(value, 0, 255)); };
  const auto turned = uint8_t(clip(int(hue * 255.0)) + turn);
  const uint8_t saturation = clip(int(range / float(most) * 255.0));
  if (saturation == 0) {
    rgb[0] = rgb[1] = rgb[2] = uint8_t(most);
    return;
  }
  const float place = float(float(turned) * 6.0f / 255.0f);
  const float share = float(float(saturation) / 255.0f);
  const int sector = int(std::floor(place));
  const float f = place - float(sector);
  const auto level = [&](double factor) { return clip(int(std::round(float(most) * factor))); };
  const uint8_t v = uint8_t(most), p = level(1.0 - share), q = level(1.0 - share * f),
                t = level(1.0 - share * (1.0 - f));
  const std::array<std::array<uint8_t, 3>, 6> sectors = {
      {{v, t, p}, {q, v, p}, {p, v, t}, {p, q, v}, {t, p, v}, {v, p, q}}};
  std::copy_n(sectors[size_t(sector % 6)].begin(), kColors, rgb);
}

double between(RandomStream& random, double low, double high) {
  return low + (high - low) * double(random.uniform());
}

double jitter_factor(RandomStream& random, double strength) {
  return between(random, std::max(0.0, 1.0 - strength), 1.0 + strength);
}

void jitter(const ColorJitter& jitter, RandomStream& random, Image& picture) {
  std::array<int, 4> order = {0, 1, 2, 3};
  for (uint32_t i = 3; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
  const double brightness = jitter_factor(random, jitter.brightness);
  const double contrast = jitter_factor(random, jitter.contrast);
  const double saturation = jitter_factor(random, jitter.saturation);
  const double hue = between(random, -jitter.hue, jitter.hue);
  for (const int change : order) {
    if (change == 0 && jitter.brightness > 0) adjust_brightness(picture, brightness);
    if (change == 1 && jitter.contrast > 0) adjust_contrast(picture, contrast);
    if (change == 2 && jitter.saturation > 0) adjust_saturation(picture, saturation);
    if (change == 3 && jitter.hue > 0) adjust_hue(picture, hue);
  }
}

// out[i] = sum_k weights[k] in[reflect(i + k - radius)] for the `size` places of an axis, each of
// `stride` values.
void blur_axis(const std::vector<float>& weights, int64_t size, int64_t stride, const float* in,
               float* out) {
  const auto radius = int64_t(weights.size() / 2);
  for (int64_t i = 0; i < size; ++i) {
    std::fill_n(out + i * stride, stride, 0.0f);
    for (int64_t k = -radius; k <= radius; ++k) {
      int64_t from = i + k;
      // An input smaller than the kernel is reflected more than once.
      while (from < 0 || from >= size) from = from < 0 ? -from : 2 * (size - 1) - from;
      const float weight = weights[size_t(k + radius)];
      for (int64_t j = 0; j < stride; ++j) out[i * stride + j] += weight * in[from * stride + j];
    }
  }
}

void blur(const GaussianBlur& blur, RandomStream& random, int64_t size, float* input) {
  const double sigma = between(random, blur.sigma[0], blur.sigma[1]);
  if (size == 1) return;
  std::vector<double> exact;
  double sum = 0;
  const int64_t radius = blur.kernel_size / 2;
  for (int64_t k = -radius; k <= radius; ++k) {
    const double x = double(k) / sigma;
    exact.push_back(std::exp(-0.5 * x * x));
    sum += exact.back();
  }
  std::vector<float> weights;
  for (const double weight : exact) weights.push_back(float(weight / sum));
  const int64_t row = size * kColors;
  std::vector<float> middle(size_t(size * row));
  blur_axis(weights, size, row, input, middle.data());
  for (int64_t y = 0; y < size; ++y) {
    blur_axis(weights, size, kColors, middle.data() + y * row, input + y * row);
  }
}

void erase(const RandomErasing& erasing, RandomStream& random, int64_t size, float* input) {
  // torchvision tries ten times for a rectangle that fits, and then leaves the image as it is.
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double area = double(size * size) * between(random, erasing.scale[0], erasing.scale[1]);
    const double ratio =
        std::exp(between(random, std::log(erasing.ratio[0]), std::log(erasing.ratio[1])));
    const int64_t height = std::llround(std::sqrt(area * ratio));
    const int64_t width = std::llround(std::sqrt(area / ratio));
    if (height >= size || width >= size) continue;
    const int64_t top = random.below(uint32_t(size - height + 1));
    const int64_t left = random.below(uint32_t(size - width + 1));
    for (int64_t y = top; y < top + height; ++y) {
      std::fill_n(input + (y * size + left) * kColors, width * kColors, float(erasing.value));
    }
    return;
  }
}

}  // namespace

void adjust_brightness(Image& picture, double factor) {
  for (uint8_t& value : picture.pixels) value = blend(0, value, float(factor));
}

void adjust_contrast(Image& picture, double factor) {
  int64_t sum = 0;
  for_each_pixel(picture, [&](const uint8_t* pixel) { sum += luma(pixel); });
  const int64_t count = picture.height * picture.width;
  const auto mean = uint8_t(std::floor(double(sum) / double(count) + 0.5));
  for (uint8_t& value : picture.pixels) value = blend(mean, value, float(factor));
}

void adjust_saturation(Image& picture, double factor) {
  for_each_pixel(picture, [&](uint8_t* pixel) {
    const uint8_t gray = luma(pixel);
    for (int64_t c = 0; c < kColors; ++c) pixel[c] = blend(gray, pixel[c], float(factor));
  });
}

void adjust_hue(Image& picture, double share) {
  const auto turn = uint8_t(int(share * 255.0));
  for_each_pixel(picture, [&](uint8_t* pixel) { turn_hue(pixel, turn); });
}

void to_grayscale(Image& picture) {
  for_each_pixel(picture, [](uint8_t* pixel) { std::fill_n(pixel, kColors, luma(pixel)); });
}

void check_augment(const char* user, const Augment& augment) {
  const auto probability = [&](const char* name, double value) {
    TORCH_CHECK_VALUE(value >= 0 && value <= 1, user, ": ", name, " must be in [0, 1], got ",
                      value);
  };
  const auto strength = [&](const char* name, double value) {
    TORCH_CHECK_VALUE(value >= 0, user, ": ", name, " must be at least 0, got ", value);
  };
  const auto range = [&](const char* name, const std::array<double, 2>& value, double most) {
    TORCH_CHECK_VALUE(value[0] > 0 && value[0] <= value[1] && value[1] <= most, user, ": ", name,
                      " must be two numbers in (0, ", most, "], the smaller first, got ", value[0],
                      " and ", value[1]);
  };
  probability("flip", augment.flip);
  TORCH_CHECK_VALUE(augment.crop_scale > 0 && augment.crop_scale <= 1, user,
                    ": crop_scale must be in (0, 1], got ", augment.crop_scale);
  TORCH_CHECK_VALUE(augment.random_crop.padding >= 0 && augment.random_crop.padding <= 8192, user,
                    ": random_crop.padding must be in [0, 8192], got ",
                    augment.random_crop.padding);
  const ColorJitter& colors = augment.color_jitter;
  strength("color_jitter.brightness", colors.brightness);
  strength("color_jitter.contrast", colors.contrast);
  strength("color_jitter.saturation", colors.saturation);
  TORCH_CHECK_VALUE(colors.hue >= 0 && colors.hue <= 0.5, user,
                    ": color_jitter.hue must be in [0, 0.5], got ", colors.hue);
  probability("color_jitter.p", colors.p);
  probability("grayscale", augment.grayscale);
  probability("blur.p", augment.blur.p);
  TORCH_CHECK_VALUE(augment.blur.kernel_size >= 1 && augment.blur.kernel_size % 2 == 1, user,
                    ": blur.kernel_size must be odd, got ", augment.blur.kernel_size);
  range("blur.sigma", augment.blur.sigma, 1000);
  probability("erasing.p", augment.erasing.p);
  range("erasing.scale", augment.erasing.scale, 1);
  range("erasing.ratio", augment.erasing.ratio, 1000);
}

void change_colors(const Augment& augment, RandomStream& random, Image& picture) {
  if (augment.color_jitter.active() && random.uniform() < augment.color_jitter.p) {
    jitter(augment.color_jitter, random, picture);
  }
  if (augment.grayscale > 0 && random.uniform() < augment.grayscale) to_grayscale(picture);
}

void change_input(const Augment& augment, RandomStream& random, int64_t size, float* input) {
  if (augment.blur.p > 0 && random.uniform() < augment.blur.p) {
    blur(augment.blur, random, size, input);
  }
  if (augment.erasing.p > 0 && random.uniform() < augment.erasing.p) {
    erase(augment.erasing, random, size, input);
  }
}

}  // namespace placket
