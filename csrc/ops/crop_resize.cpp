#include "ops/crop_resize.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/crop_resize.h"

namespace placket {

using at::Tensor;

Tensor crop_resize(const Tensor& pixels, const Tensor& offsets, const Tensor& sizes,
                   const Tensor& boxes, const Tensor& image_index, int64_t height, int64_t width,
                   at::ArrayRef<double> mean, at::ArrayRef<double> std, at::ScalarType dtype,
                   bool channels_last, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& windows) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::crop_resize", "")
                             .typed<decltype(crop_resize)>();
  return op.call(pixels, offsets, sizes, boxes, image_index, height, width, mean, std, dtype,
                 channels_last, flip, windows);
}

namespace {

constexpr const char* kName = "crop_resize";

// The arguments as the kernels want them; holds the contiguous copies alive.
struct Arguments {
  Tensor pixels, offsets, sizes, boxes, image_index, flip, windows;
  CropResize in;

  Arguments(const Tensor& pixels_, const Tensor& offsets_, const Tensor& sizes_,
            const Tensor& boxes_, const Tensor& image_index_, int64_t height, int64_t width,
            at::ArrayRef<double> mean, at::ArrayRef<double> std, at::ScalarType dtype,
            bool channels_last, const std::optional<Tensor>& flip_,
            const std::optional<Tensor>& windows_) {
    check_shape(kName, "pixels", pixels_, {-1}, "[L]");
    check_dtype(kName, "pixels", pixels_, at::kByte);
    pixels = pixels_.contiguous();
    offsets = checked("offsets", offsets_, {-1}, "[N]");
    const int64_t images = offsets.size(0);
    sizes = checked("sizes", sizes_, {images, 2}, "[N, 2] like offsets");
    boxes = checked("boxes", boxes_, {-1, 4}, "[M, 4]");
    const int64_t crops = boxes.size(0);
    image_index = checked("image_index", image_index_, {crops}, "[M] like boxes");
    if (flip_) flip = checked("flip", *flip_, {crops}, "[M] like boxes", at::kBool);
    if (windows_) windows = checked("windows", *windows_, {crops, 4}, "[M, 4] like boxes");
    TORCH_CHECK_VALUE(height >= 0 && width >= 0, kName,
                      ": height and width must not be negative, got ", height, " and ", width);
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, kName,
                     ": dtype must be float32 or bfloat16, got ", dtype);
    check_channels("mean", mean, [](double m) { return std::isfinite(m); }, "3 finite numbers");
    check_channels(
        "std", std, [](double s) { return std::isfinite(s) && s > 0; }, "3 positive numbers");
    in = {data<uint8_t>(pixels),
          pixels.size(0),
          data<int64_t>(offsets),
          data<int64_t>(sizes),
          images,
          data<int64_t>(boxes),
          data<int64_t>(image_index),
          flip.defined() ? data<bool>(flip) : nullptr,
          windows.defined() ? data<int64_t>(windows) : nullptr,
          crops,
          height,
          width,
          {float(mean[0]), float(mean[1]), float(mean[2])},
          {float(std[0]), float(std[1]), float(std[2])},
          channels_last};
  }

  Tensor checked(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape,
                 const char* pattern, at::ScalarType dtype = at::kLong) const {
    check_shape(kName, name, tensor, shape, pattern);
    check_dtype(kName, name, tensor, dtype);
    check_same_device(kName, name, tensor, "pixels", pixels);
    return tensor.contiguous();
  }

  template <class Condition>
  static void check_channels(const char* name, at::ArrayRef<double> values,
                             const Condition& condition, const char* what) {
    TORCH_CHECK_VALUE(
        values.size() == 3 && condition(values[0]) && condition(values[1]) && condition(values[2]),
        kName, ": ", name, " must be ", what, ", got ", values);
  }

  void check_values() const {
    for (int64_t i = 0; i < in.images; ++i) {
      TORCH_CHECK_VALUE(
          valid_image(in.offsets[i], in.sizes[2 * i], in.sizes[2 * i + 1], in.bytes), kName,
          ": offsets and sizes must keep every image of height * width * 3 bytes inside the ",
          in.bytes, " bytes of pixels, got offset ", in.offsets[i], " and size ",
          at::IntArrayRef(in.sizes + 2 * i, 2), " for image ", i);
    }
    for (int64_t i = 0; i < in.crops; ++i) {
      TORCH_CHECK_VALUE(in.image_index[i] >= 0 && in.image_index[i] < in.images, kName,
                        ": image_index must be in [0, ", in.images, "), got ", in.image_index[i],
                        " for box ", i);
      TORCH_CHECK_VALUE(valid_box(in.boxes + 4 * i), kName,
                        ": boxes must be x0 y0 x1 y1 with x0 < x1 and y0 < y1, no further than ",
                        kCropLimit, " from 0, got ", at::IntArrayRef(in.boxes + 4 * i, 4),
                        " for box ", i);
      if (in.windows == nullptr) continue;
      TORCH_CHECK_VALUE(valid_window(window_of(in, i), in.height, in.width), kName,
                        ": windows must be resized height, resized width, top, left of ", in.height,
                        " x ", in.width, " pixels inside a resized box with sides of at most ",
                        kResizedLimit, ", got ", at::IntArrayRef(in.windows + 4 * i, 4),
                        " for box ", i);
    }
  }

  Tensor output(at::ScalarType dtype) const {
    return at::empty(
        {in.crops, 3, in.height, in.width}, pixels.options().dtype(dtype),
        in.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  }
};

template <class Run>
Tensor run_with_dtype(const Arguments& arguments, at::ScalarType dtype, const Run& run) {
  Tensor out = arguments.output(dtype);
  if (dtype == at::kFloat) {
    run(mutable_data<float>(out));
  } else {
    run(mutable_data<BFloat16>(out));
  }
  return out;
}

Tensor crop_resize_cpu_op(const Tensor& pixels, const Tensor& offsets, const Tensor& sizes,
                          const Tensor& boxes, const Tensor& image_index, int64_t height,
                          int64_t width, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                          at::ScalarType dtype, bool channels_last,
                          const std::optional<Tensor>& flip, const std::optional<Tensor>& windows) {
  const Arguments arguments(pixels, offsets, sizes, boxes, image_index, height, width, mean, std,
                            dtype, channels_last, flip, windows);
  arguments.check_values();
  return run_with_dtype(arguments, dtype, [&](auto* out) { crop_resize_cpu(arguments.in, out); });
}

#ifdef PLACKET_CUDA
Tensor crop_resize_cuda(const Tensor& pixels, const Tensor& offsets, const Tensor& sizes,
                        const Tensor& boxes, const Tensor& image_index, int64_t height,
                        int64_t width, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                        at::ScalarType dtype, bool channels_last, const std::optional<Tensor>& flip,
                        const std::optional<Tensor>& windows) {
  const Arguments arguments(pixels, offsets, sizes, boxes, image_index, height, width, mean, std,
                            dtype, channels_last, flip, windows);
  const at::OptionalDeviceGuard guard(at::device_of(pixels));
  return run_with_dtype(arguments, dtype, [&](auto* out) {
    check_launch(kName, launch_crop_resize(arguments.in, out, current_stream(pixels)));
  });
}
#endif

}  // namespace

// Without an Autograd kernel: no argument can require a gradient.
TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "crop_resize(Tensor pixels, Tensor offsets, Tensor sizes, Tensor boxes, Tensor image_index, "
      "int height, int width, float[] mean, float[] std, ScalarType dtype=float, "
      "bool channels_last=False, Tensor? flip=None, Tensor? windows=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) { m.impl("crop_resize", crop_resize_cpu_op); }
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) { m.impl("crop_resize", crop_resize_cuda); }
#endif

}  // namespace placket
