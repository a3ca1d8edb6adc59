#include "data/picture.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>

#include "data/pooled.h"
#include "kernels/cut_pictures.h"
#include "kernels/resample.h"
#include "kernels/resample_axis.h"

namespace placket {
namespace {

Box with_margin(const Box& box, double margin, int64_t height, int64_t width) {
  const auto [x0, y0, x1, y1] = box;
  TORCH_CHECK_VALUE(std::max<int64_t>(x0, 0) < std::min(x1, width) &&
                        std::max<int64_t>(y0, 0) < std::min(y1, height),
                    "box must overlap the image of ", width, " x ", height, " pixels, got [", x0,
                    ", ", y0, ", ", x1, ", ", y1, "]");
  const int64_t dx = std::llround(margin * double(x1 - x0));
  const int64_t dy = std::llround(margin * double(y1 - y0));
  return {std::max<int64_t>(x0 - dx, 0), std::max<int64_t>(y0 - dy, 0), std::min(x1 + dx, width),
          std::min(y1 + dy, height)};
}

struct NamedFilter {
  const char* name;
  Filter filter;
};
constexpr NamedFilter kFilters[] = {{"bilinear", Filter::kBilinear},
                                    {"bicubic", Filter::kBicubic},
                                    {"box", Filter::kBox},
                                    {"lanczos", Filter::kLanczos}};

const NamedFilter* find_filter(const std::string& name) {
  const auto* found = std::find_if(std::begin(kFilters), std::end(kFilters),
                                   [&](const NamedFilter& known) { return name == known.name; });
  return found == std::end(kFilters) ? nullptr : found;
}

FitWindow window_in(int64_t height, int64_t width, const Preprocess& preprocess) {
  if (preprocess.fit == "squash") return {preprocess.size, preprocess.size, 0, 0};
  return fit_window(height, width, preprocess.size);
}

ResampleJob job_of(const ImageView& image, const Frame& frame, const Preprocess& preprocess) {
  const FitWindow window = source_window(frame, preprocess.size);
  return {.image = image.pixels,
          .image_height = image.height,
          .image_width = image.width,
          .x0 = frame.x0,
          .y0 = frame.y0,
          .x1 = frame.x1,
          .y1 = frame.y1,
          .resized_height = window.resized_height,
          .resized_width = window.resized_width,
          .top = window.top,
          .left = window.left,
          .flip = frame.flip,
          .filter = filter_of(preprocess)};
}

}  // namespace

Filter filter_of(const Preprocess& preprocess) {
  const NamedFilter* found = find_filter(preprocess.interpolation);
  TORCH_INTERNAL_ASSERT(found != nullptr);
  return found->filter;
}

Orientation orientation_of(const Preprocess& preprocess) {
  return preprocess.orientation == "ignore" ? Orientation::kIgnore : Orientation::kApply;
}

void check_preprocess(const char* user, const Preprocess& preprocess) {
  TORCH_CHECK_VALUE(preprocess.size >= 1 && preprocess.size <= 8192, user,
                    ": size must be in [1, 8192], got ", preprocess.size);
  TORCH_CHECK_VALUE(preprocess.fit == "crop" || preprocess.fit == "pad" ||
                        preprocess.fit == "target_pad" || preprocess.fit == "squash",
                    user, ": fit must be 'crop', 'pad', 'target_pad' or 'squash', got '",
                    preprocess.fit, "'");
  TORCH_CHECK_VALUE(preprocess.target_ratio >= 1 && preprocess.target_ratio <= 100, user,
                    ": target_ratio must be in [1, 100], got ", preprocess.target_ratio);
  TORCH_CHECK_VALUE(preprocess.arithmetic == "pillow" || preprocess.arithmetic == "float", user,
                    ": arithmetic must be 'pillow' or 'float', got '", preprocess.arithmetic, "'");
  TORCH_CHECK_VALUE(find_filter(preprocess.interpolation) != nullptr, user,
                    ": interpolation must be 'bilinear', 'bicubic', 'box' or 'lanczos', got '",
                    preprocess.interpolation, "'");
  TORCH_CHECK_VALUE(preprocess.orientation == "apply" || preprocess.orientation == "ignore", user,
                    ": orientation must be 'apply' or 'ignore', got '", preprocess.orientation,
                    "'");
  TORCH_CHECK_VALUE(preprocess.box_margin >= 0 && preprocess.box_margin <= 10, user,
                    ": box_margin must be in [0, 10], got ", preprocess.box_margin);
  for (const float std : preprocess.std) {
    TORCH_CHECK_VALUE(std > 0, user, ": std must be positive, got ", std);
  }
}

Frame frame_picture(int64_t height, int64_t width, const std::optional<Box>& box,
                    const Preprocess& preprocess, const Augment& augment, RandomStream* random) {
  auto [x0, y0, x1, y1] = with_margin(box.value_or(Box{0, 0, width, height}),
                                      box.has_value() ? preprocess.box_margin : 0.0, height, width);
  if (preprocess.fit == "pad") {
    const int64_t side = std::max(x1 - x0, y1 - y0);
    x0 -= (side - (x1 - x0)) / 2;
    y0 -= (side - (y1 - y0)) / 2;
    x1 = x0 + side;
    y1 = y0 + side;
  } else if (preprocess.fit == "target_pad") {
    const double least = double(std::max(x1 - x0, y1 - y0)) / preprocess.target_ratio;
    const int64_t dx = std::max<int64_t>(int64_t((least - double(x1 - x0)) / 2), 0);
    const int64_t dy = std::max<int64_t>(int64_t((least - double(y1 - y0)) / 2), 0);
    x0 -= dx;
    x1 += dx;
    y0 -= dy;
    y1 += dy;
  }
  Frame frame;
  if (random != nullptr) {
    frame.flip = random->uniform() < augment.flip;
    const double area = augment.crop_scale + (1.0 - augment.crop_scale) * random->uniform();
    const double scale = std::sqrt(area);
    const int64_t kept_width = std::max<int64_t>(std::llround(double(x1 - x0) * scale), 1);
    const int64_t kept_height = std::max<int64_t>(std::llround(double(y1 - y0) * scale), 1);
    x0 += random->below(uint32_t(x1 - x0 - kept_width + 1));
    y0 += random->below(uint32_t(y1 - y0 - kept_height + 1));
    x1 = x0 + kept_width;
    y1 = y0 + kept_height;
    if (augment.random_crop.padding > 0) {
      const FitWindow fit = window_in(y1 - y0, x1 - x0, preprocess);
      const auto shift = [&](int64_t side, int64_t resized) {
        const int64_t padding = augment.random_crop.padding;
        const int64_t pixels = int64_t(random->below(uint32_t(2 * padding + 1))) - padding;
        return std::llround(double(pixels * side) / double(resized));
      };
      const int64_t dx = shift(x1 - x0, fit.resized_width);
      const int64_t dy = shift(y1 - y0, fit.resized_height);
      x0 += dx;
      x1 += dx;
      y0 += dy;
      y1 += dy;
    }
  }
  frame.x0 = x0;
  frame.y0 = y0;
  frame.x1 = x1;
  frame.y1 = y1;
  frame.fit = window_in(y1 - y0, x1 - x0, preprocess);
  return frame;
}

FitWindow source_window(const Frame& frame, int64_t size) {
  FitWindow window = frame.fit;
  if (frame.flip) window.left = window.resized_width - size - window.left;
  return window;
}

Box input_part(int64_t height, int64_t width, const Frame& frame, const Preprocess& preprocess) {
  const ResampleJob job = job_of(ImageView(height, width, nullptr), frame, preprocess);
  return resample_sources(job, preprocess.size, preprocess.size);
}

void write_input(const ImageView& image, const Frame& frame, const Preprocess& preprocess,
                 float* out) {
  const int64_t size = preprocess.size;
  const ResampleJob job = job_of(image, frame, preprocess);
  float mean[3], std[3];
  std::copy(preprocess.mean.begin(), preprocess.mean.end(), mean);
  std::copy(preprocess.std.begin(), preprocess.std.end(), std);
  if (preprocess.arithmetic == "float") return resample_float_cpu(job, size, size, mean, std, out);
  resample_normalized_cpu(job, size, size, mean, std, 1, size * kChannels, kChannels, out);
}

void segment_input(const Region& region, const std::string& name, int64_t height, int64_t width,
                   const Frame& frame, const Preprocess& preprocess, const float* input,
                   float* out) {
  const MaskPicture& mask = *region.picture;
  if (mask.height != height || mask.width != width) {
    throw std::runtime_error(name + ": mask must have its image's " + std::to_string(width) +
                             " x " + std::to_string(height) + " pixels, got " +
                             std::to_string(mask.width) + " x " + std::to_string(mask.height));
  }
  const int64_t size = preprocess.size;
  ResampleJob job = job_of(ImageView(height, width, nullptr), frame, preprocess);
  job.filter = Filter::kBilinear;
  const Box read = resample_sources(job, size, size);
  const int64_t x0 = std::clamp<int64_t>(read[0], 0, width);
  const int64_t y0 = std::clamp<int64_t>(read[1], 0, height);
  const int64_t x1 = std::clamp(read[2], x0, width), y1 = std::clamp(read[3], y0, height);
  if (x0 == x1 || y0 == y1) {
    std::fill_n(out, size * size * kChannels, 0.0f);
    return;
  }
  std::array<uint8_t, 256> level;
  for (int pixel = 0; pixel < 256; ++pixel) {
    level[size_t(pixel)] = region.has(uint8_t(pixel)) ? 255 : 0;
  }
  Image part{y1 - y0, x1 - x0, Bytes(size_t((y1 - y0) * (x1 - x0) * kChannels))};
  uint8_t* to = part.pixels.data();
  for (int64_t y = y0; y < y1; ++y) {
    const uint8_t* row = mask.pixels.data() + y * width;
    for (int64_t x = x0; x < x1; ++x, to += kChannels) to[0] = to[1] = to[2] = level[row[x]];
  }
  job.image = part.pixels.data();
  job.image_height = part.height;
  job.image_width = part.width;
  job.x0 -= x0;
  job.x1 -= x0;
  job.y0 -= y0;
  job.y1 -= y0;
  Bytes covered(size_t(size * size * kChannels));
  resample_uint8_cpu(job, size, size, covered.data());
  std::array<float, 256> share;
  for (int i = 0; i < 256; ++i) share[size_t(i)] = float(i) / 255.0f;
  for (size_t i = 0; i < covered.size(); i += kChannels) {
    const float own = share[covered[i]];
    for (int64_t c = 0; c < kChannels; ++c) out[i + c] = input[i + c] * own;
  }
}

Image shrink(const ImageView& image, int64_t size) {
  TORCH_CHECK_VALUE(size >= 1, "shrink: size must be positive, got ", size);
  const FitWindow fit =
      fit_window(image.height, image.width, std::min({size, image.height, image.width}));
  Image small{fit.resized_height, fit.resized_width, {}};
  small.pixels.resize(size_t(small.height * small.width * kChannels));
  const ResampleJob job{.image = image.pixels,
                        .image_height = image.height,
                        .image_width = image.width,
                        .x0 = 0,
                        .y0 = 0,
                        .x1 = image.width,
                        .y1 = image.height,
                        .resized_height = small.height,
                        .resized_width = small.width,
                        .top = 0,
                        .left = 0,
                        .flip = false};
  resample_uint8_cpu(job, small.height, small.width, small.pixels.data());
  return small;
}

Image cut_picture(const ImageView& image, const Frame& frame) {
  Image picture;
  picture.height = frame.y1 - frame.y0;
  picture.width = frame.x1 - frame.x0;
  picture.pixels.resize(size_t(picture.height * picture.width * kChannels));
  const int64_t box[4] = {frame.x0, frame.y0, frame.x1, frame.y1};
  cut_picture_cpu(image.pixels, image.height, image.width, box, frame.flip, picture.pixels.data());
  return picture;
}

Frame whole_picture(const Frame& frame) {
  return {0, 0, frame.x1 - frame.x0, frame.y1 - frame.y0, frame.fit, false};
}

void keep_pictures(const std::vector<Image>& pictures, bool pin_memory, Batch& batch) {
  const int64_t count = int64_t(pictures.size());
  batch.offsets = at::empty({count}, at::kLong);
  batch.sizes = at::empty({count, 2}, at::kLong);
  auto* offsets = batch.offsets.mutable_data_ptr<int64_t>();
  auto* sizes = batch.sizes.mutable_data_ptr<int64_t>();
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) {
    offsets[i] = bytes;
    sizes[2 * i] = pictures[i].height;
    sizes[2 * i + 1] = pictures[i].width;
    bytes += int64_t(pictures[i].pixels.size());
  }
  batch.pixels = pooled_empty({bytes}, {1}, at::kByte, pin_memory);
  auto* to = batch.pixels.mutable_data_ptr<uint8_t>();
  for (const Image& picture : pictures) {
    to = std::copy(picture.pixels.begin(), picture.pixels.end(), to);
  }
}

Batch make_batch(const ImageView& image, const std::optional<Box>& box,
                 const Preprocess& preprocess, const Region* region) {
  check_preprocess("preprocess", preprocess);
  const Frame frame = frame_picture(image.height, image.width, box, preprocess);
  Batch batch;
  batch.images =
      at::empty({1, kChannels, preprocess.size, preprocess.size},
                at::TensorOptions(at::kFloat).memory_format(at::MemoryFormat::ChannelsLast));
  write_input(image, frame, preprocess, batch.images.mutable_data_ptr<float>());
  batch.segmented = region == nullptr ? at::empty({0}) : at::empty_like(batch.images);
  if (region != nullptr) {
    segment_input(*region, "prepare_image", image.height, image.width, frame, preprocess,
                  batch.images.const_data_ptr<float>(), batch.segmented.mutable_data_ptr<float>());
  }
  batch.attributes = at::empty({0}, at::kLong);
  batch.values = at::empty({0}, at::kLong);
  batch.labels = at::empty({1, 0}, at::kLong);
  batch.classes = at::empty({1, 0}, at::kBool);
  keep_pictures({cut_picture(image, frame)}, /*pin_memory=*/false, batch);
  return batch;
}

}  // namespace placket
