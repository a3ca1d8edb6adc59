#include "bindings/data.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "data/decode.h"
#include "data/loader.h"
#include "data/mask.h"
#include "data/picture.h"
#include "data/sampler.h"

namespace py = pybind11;

namespace placket {
namespace {

std::shared_ptr<LabelTable> make_label_table(const Array<int64_t>& begin,
                                             const Array<int32_t>& attribute,
                                             const Array<int32_t>& value,
                                             std::vector<int64_t> values) {
  auto table = std::make_shared<LabelTable>(
      LabelTable{to_vector(begin), to_vector(attribute), to_vector(value), std::move(values)});
  check_labels("LabelTable", *table);
  return table;
}

std::string describe(const Preprocess& p) {
  std::ostringstream text;
  text << "Preprocess(size=" << p.size << ", fit='" << p.fit << "', target_ratio=" << p.target_ratio
       << ", interpolation='" << p.interpolation << "', arithmetic='" << p.arithmetic
       << "', orientation='" << p.orientation << "', box_margin=" << p.box_margin << ", mean=("
       << p.mean[0] << ", " << p.mean[1] << ", " << p.mean[2] << "), std=(" << p.std[0] << ", "
       << p.std[1] << ", " << p.std[2] << "))";
  return text.str();
}

// The region that a mask's true pixels are.
Region region_of(const Array<bool>& mask) {
  TORCH_CHECK_VALUE(mask.ndim() == 2, "prepare_image: mask must have shape [height, width], got ",
                    mask.ndim(), " dimensions");
  MaskPicture picture{mask.shape(0), mask.shape(1), Bytes(size_t(mask.size()))};
  std::copy_n(mask.data(), mask.size(), picture.pixels.begin());
  return {std::make_shared<const MaskPicture>(std::move(picture)), /*number=*/1};
}

using Corners = std::array<double, 4>;

// The picture that is cut out of an image, and the part of it that the input shows.
std::pair<Box, Corners> frame_of(int64_t height, int64_t width, const std::optional<Box>& box,
                                 const Preprocess& preprocess) {
  check_preprocess("frame", preprocess);
  const Frame frame = frame_picture(height, width, box, preprocess);
  const FitWindow& fit = frame.fit;
  // The long side is cut to whole pixels after the resize, so its scale differs a little from the
  // short one's.
  const double step_x = double(frame.x1 - frame.x0) / double(fit.resized_width);
  const double step_y = double(frame.y1 - frame.y0) / double(fit.resized_height);
  const Corners window = {double(frame.x0) + double(fit.left) * step_x,
                          double(frame.y0) + double(fit.top) * step_y,
                          double(frame.x0) + double(fit.left + preprocess.size) * step_x,
                          double(frame.y0) + double(fit.top + preprocess.size) * step_y};
  return {{frame.x0, frame.y0, frame.x1, frame.y1}, window};
}

}  // namespace

void bind_data(py::module_& m) {
  using py::arg;

  py::class_<Preprocess>(
      m, "Preprocess",
      "From a decoded image to a model's input. size: side of the square input, in [1, 8192]. fit: "
      "'crop' resizes the short side and keeps the centre, 'pad' grows the box to a square about "
      "its centre, zeros outside the image, 'target_pad' grows a box that is longer than "
      "target_ratio, in [1, 100], to that ratio, then resizes the short side and keeps the centre, "
      "'squash' resizes each side by itself. "
      "interpolation: Pillow's antialiased filter, 'bilinear', 'bicubic', 'box' or 'lanczos'. "
      "arithmetic: 'pillow' has every bit of Pillow, 'float' rounds nothing to 8 bits and is "
      "faster, "
      "within about one grey level (bicubic and lanczos: more beside corners of black or white). "
      "orientation: 'apply' turns pictures upright by "
      "their EXIF tag, 'ignore' takes the pixels as stored. box_margin: share of the box's width "
      "and height added on each side, in [0, 10], where the set has boxes. mean, std: of each "
      "channel, on [0, 1].")
      .def(py::init([](int64_t size, std::string fit, double box_margin, std::array<float, 3> mean,
                       std::array<float, 3> std, std::string interpolation, std::string orientation,
                       std::string arithmetic, double target_ratio) {
             Preprocess preprocess{.size = size,
                                   .fit = std::move(fit),
                                   .target_ratio = target_ratio,
                                   .interpolation = std::move(interpolation),
                                   .arithmetic = std::move(arithmetic),
                                   .orientation = std::move(orientation),
                                   .box_margin = box_margin,
                                   .mean = mean,
                                   .std = std};
             check_preprocess("Preprocess", preprocess);
             return preprocess;
           }),
           arg("size") = 224, arg("fit") = "crop", arg("box_margin") = 0.0,
           arg("mean") = Preprocess().mean, arg("std") = Preprocess().std,
           arg("interpolation") = "bilinear", arg("orientation") = "apply",
           arg("arithmetic") = "pillow", arg("target_ratio") = Preprocess().target_ratio)
      .def_readonly("size", &Preprocess::size)
      .def_readonly("fit", &Preprocess::fit)
      .def_readonly("interpolation", &Preprocess::interpolation)
      .def_readonly("orientation", &Preprocess::orientation)
      .def_readonly("arithmetic", &Preprocess::arithmetic)
      .def_readonly("target_ratio", &Preprocess::target_ratio)
      .def_readonly("box_margin", &Preprocess::box_margin)
      .def_readonly("mean", &Preprocess::mean)
      .def_readonly("std", &Preprocess::std)
      .def("__repr__", &describe);

  py::class_<ColorJitter>(
      m, "ColorJitter",
      "torchvision's ColorJitter with probability p: factors of brightness, contrast and "
      "saturation uniform in [max(0, 1 - x), 1 + x], the hue turned by a share of the circle "
      "uniform in [-hue, hue], hue at most 0.5; in random order and Pillow's arithmetic.")
      .def(py::init([](double brightness, double contrast, double saturation, double hue,
                       double p) { return ColorJitter{brightness, contrast, saturation, hue, p}; }),
           arg("brightness") = 0.0, arg("contrast") = 0.0, arg("saturation") = 0.0,
           arg("hue") = 0.0, arg("p") = 1.0)
      .def_readonly("brightness", &ColorJitter::brightness)
      .def_readonly("contrast", &ColorJitter::contrast)
      .def_readonly("saturation", &ColorJitter::saturation)
      .def_readonly("hue", &ColorJitter::hue)
      .def_readonly("p", &ColorJitter::p);

  py::class_<GaussianBlur>(
      m, "GaussianBlur",
      "torchvision's GaussianBlur of the input with probability p: kernel_size odd, sigma in "
      "pixels of the input, uniform between two numbers.")
      .def(py::init([](int64_t kernel_size, std::array<double, 2> sigma, double p) {
             return GaussianBlur{kernel_size, sigma, p};
           }),
           arg("kernel_size") = 9, arg("sigma") = GaussianBlur().sigma, arg("p") = 0.5)
      .def_readonly("kernel_size", &GaussianBlur::kernel_size)
      .def_readonly("sigma", &GaussianBlur::sigma)
      .def_readonly("p", &GaussianBlur::p);

  py::class_<RandomErasing>(
      m, "RandomErasing",
      "torchvision's RandomErasing of the normalised input: with probability p a rectangle "
      "whose share of the area is in `scale` and height / width in `ratio` becomes `value`.")
      .def(py::init([](double p, std::array<double, 2> scale, std::array<double, 2> ratio,
                       double value) { return RandomErasing{p, scale, ratio, value}; }),
           arg("p") = 0.5, arg("scale") = RandomErasing().scale,
           arg("ratio") = RandomErasing().ratio, arg("value") = 0.0)
      .def_readonly("p", &RandomErasing::p)
      .def_readonly("scale", &RandomErasing::scale)
      .def_readonly("ratio", &RandomErasing::ratio)
      .def_readonly("value", &RandomErasing::value);

  py::class_<RandomCrop>(
      m, "RandomCrop",
      "torchvision's RandomCrop of the input with `padding` on each side, in [0, 8192]: a shift of "
      "up "
      "to so many pixels of the input along either axis. The picture is moved over the image, so "
      "photo comes in at an edge where the image goes on, and zeros beyond it.")
      .def(py::init([](int64_t padding) { return RandomCrop{padding}; }), arg("padding"))
      .def_readonly("padding", &RandomCrop::padding);

  py::class_<Augment>(
      m, "Augment",
      "Random changes in training. flip: probability of a horizontal flip. crop_scale: lower end, "
      "in (0, 1], of the share of the area that a random resized crop keeps; 1 switches it off. "
      "random_crop moves what is kept. color_jitter, then grayscale (a probability), change the "
      "picture before it is resized; "
      "blur, then erasing, the input.")
      .def(py::init([](double flip, double crop_scale, const std::optional<ColorJitter>& jitter,
                       double grayscale, const std::optional<GaussianBlur>& blur,
                       const std::optional<RandomErasing>& erasing,
                       const std::optional<RandomCrop>& random_crop) {
             Augment augment{.flip = flip,
                             .crop_scale = crop_scale,
                             .random_crop = random_crop.value_or(RandomCrop()),
                             .color_jitter = jitter.value_or(ColorJitter()),
                             .grayscale = grayscale,
                             .blur = blur.value_or(GaussianBlur()),
                             .erasing = erasing.value_or(RandomErasing())};
             check_augment("Augment", augment);
             return augment;
           }),
           arg("flip") = 0.0, arg("crop_scale") = 1.0, arg("color_jitter") = py::none(),
           arg("grayscale") = 0.0, arg("blur") = py::none(), arg("erasing") = py::none(),
           arg("random_crop") = py::none())
      .def_readonly("flip", &Augment::flip)
      .def_readonly("crop_scale", &Augment::crop_scale)
      .def_readonly("color_jitter", &Augment::color_jitter)
      .def_readonly("grayscale", &Augment::grayscale)
      .def_readonly("blur", &Augment::blur)
      .def_readonly("erasing", &Augment::erasing)
      .def_readonly("random_crop", &Augment::random_crop);

  py::class_<LabelTable, std::shared_ptr<LabelTable>>(m, "LabelTable")
      .def(py::init(&make_label_table), arg("begin"), arg("attribute"), arg("value"), arg("values"))
      .def("__len__", &LabelTable::images);

  py::class_<BatchPlan>(m, "BatchPlan")
      .def_readonly("epoch", &BatchPlan::epoch)
      .def_property_readonly("positions",
                             [](const BatchPlan& plan) { return to_array(plan.positions); })
      .def_property_readonly("images", [](const BatchPlan& plan) { return to_array(plan.images); })
      .def_property_readonly("attributes",
                             [](const BatchPlan& plan) { return to_array(plan.attributes); })
      .def_property_readonly("values", [](const BatchPlan& plan) { return to_array(plan.values); });

  py::class_<Batch>(m, "Batch")
      .def_readonly("plan", &Batch::plan)
      .def_readonly("images", &Batch::images)
      .def_readonly("segmented", &Batch::segmented)
      .def_readonly("attributes", &Batch::attributes)
      .def_readonly("values", &Batch::values)
      .def_readonly("labels", &Batch::labels)
      .def_readonly("classes", &Batch::classes)
      .def_readonly("pixels", &Batch::pixels)
      .def_readonly("offsets", &Batch::offsets)
      .def_readonly("sizes", &Batch::sizes);

  py::class_<BatchSource, std::shared_ptr<BatchSource>>(m, "BatchSource")
      .def("plan", &BatchSource::plan, arg("step"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("steps_per_epoch", &BatchSource::steps_per_epoch);

  m.def(
      "triplet_source",
      [](std::shared_ptr<LabelTable> labels, uint64_t seed, int64_t batch, int64_t triplets,
         bool negative_by_value, bool exclude_shared, bool single_views, int64_t rank,
         int64_t world_size) {
        return std::shared_ptr<BatchSource>(make_triplet_source(
            std::move(labels), {seed, batch, triplets, negative_by_value, exclude_shared,
                                single_views, rank, world_size}));
      },
      arg("labels"), py::kw_only(), arg("seed") = 0, arg("batch") = 16, arg("triplets") = 100000,
      arg("negative_by_value") = true, arg("exclude_shared") = false, arg("single_views") = false,
      arg("rank") = 0, arg("world_size") = 1);
  m.def(
      "class_source",
      [](const std::shared_ptr<LabelTable>& labels, uint64_t seed, int64_t classes,
         int64_t images_of_class, int64_t steps, int64_t attribute, int64_t least_images,
         int64_t balance, int64_t rank, int64_t world_size) {
        return std::shared_ptr<BatchSource>(
            make_class_source(labels, {seed, classes, images_of_class, steps, attribute,
                                       least_images, balance, rank, world_size}));
      },
      arg("labels"), py::kw_only(), arg("seed") = 0, arg("classes") = 16,
      arg("images_of_class") = 4, arg("steps") = 0, arg("attribute") = -1, arg("least_images") = 2,
      arg("balance") = -1, arg("rank") = 0, arg("world_size") = 1);
  m.def(
      "image_source",
      [](int64_t images, uint64_t seed, int64_t batch, bool shuffle, bool drop_last, int64_t rank,
         int64_t world_size) {
        return std::shared_ptr<BatchSource>(
            make_image_source(images, {seed, batch, shuffle, drop_last, rank, world_size}));
      },
      arg("images"), py::kw_only(), arg("seed") = 0, arg("batch") = 48, arg("shuffle") = true,
      arg("drop_last") = true, arg("rank") = 0, arg("world_size") = 1);
  m.def("copied_source", &make_copied_source, arg("source"), arg("copies"));

  py::class_<Loader, std::unique_ptr<Loader, WithoutGil>>(m, "Loader")
      .def(py::init([](std::shared_ptr<ImageList> images, std::shared_ptr<LabelTable> labels,
                       std::shared_ptr<BatchSource> source, const Preprocess& preprocess,
                       const Augment& augment, uint64_t seed, bool keep_pixels, int64_t threads,
                       int64_t prefetch, bool skip_unreadable, bool pin_memory, std::string views) {
             return std::unique_ptr<Loader, WithoutGil>(
                 new Loader(std::move(images), std::move(labels), std::move(source),
                            {preprocess, augment, seed, keep_pixels, std::move(views), threads,
                             prefetch, skip_unreadable, pin_memory}));
           }),
           arg("images"), arg("labels").none(true), arg("source"), py::kw_only(),
           arg("preprocess") = Preprocess(), arg("augment") = Augment(), arg("seed") = 0,
           arg("keep_pixels") = false, arg("threads") = 2, arg("prefetch") = 2,
           arg("skip_unreadable") = false, arg("pin_memory") = false, arg("views") = "crop")
      .def("next", &Loader::next, py::call_guard<py::gil_scoped_release>())
      .def("seek", &Loader::seek, arg("step"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("waited", &Loader::waited)
      .def_property_readonly("skipped", &Loader::skipped);

  const auto def_adjust = [&](const char* name, void (*adjust)(Image&, double)) {
    m.def(
        name,
        [adjust](const Array<uint8_t>& pixels, double amount) {
          Image image = image_of(pixels);
          adjust(image, amount);
          return pixels_of(image);
        },
        arg("pixels"), arg("amount"),
        "Return [height, width, 3] uint8 RGB changed as Pillow's ImageEnhance does by a factor of "
        "at least 0, or, for the hue, as torchvision's adjust_hue by a share of the circle in "
        "[-0.5, 0.5].");
  };
  def_adjust("adjust_brightness", &adjust_brightness);
  def_adjust("adjust_contrast", &adjust_contrast);
  def_adjust("adjust_saturation", &adjust_saturation);
  def_adjust("adjust_hue", &adjust_hue);
  m.def("frame", &frame_of, arg("height"), arg("width"), arg("box") = py::none(),
        arg("preprocess") = Preprocess(),
        "What preprocessing cuts out of an image: the picture, and the part of it that the square "
        "input shows; both x0, y0, x1, y1 in pixels of the image, which they may leave with fit "
        "'pad' and 'target_pad'.");
  m.def(
      "prepare_image",
      [](const Array<uint8_t>& pixels, const std::optional<Box>& box, const Preprocess& preprocess,
         const std::optional<Array<bool>>& mask) {
        const Image image = image_of(pixels);
        if (!mask.has_value()) return make_batch(image, box, preprocess);
        const Region region = region_of(*mask);
        return make_batch(image, box, preprocess, &region);
      },
      arg("pixels"), arg("box") = py::none(), arg("preprocess") = Preprocess(),
      arg("mask") = py::none(),
      "A batch of one image, [height, width, 3] uint8. mask: [height, width] bool, of which "
      "Batch.segmented is made.");
}

}  // namespace placket
