#include "ops/region_box.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <cmath>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/region_box.h"
#include "ops/autocast.h"

namespace placket {

using at::Tensor;

Tensor region_box(const Tensor& attention, const Tensor& sizes, double threshold, int64_t view,
                  bool squashed) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::region_box", "")
                             .typed<decltype(region_box)>();
  return op.call(attention, sizes, threshold, view, squashed);
}

namespace {

constexpr const char* kName = "region_box";
// Keeps coordinates of the view in 32 bits.
constexpr int64_t kMostView = 1 << 20;

// The arguments as the kernels want them; holds the contiguous copies alive.
struct Arguments {
  Tensor attention, sizes, boxes;
  RegionBox in;

  Arguments(const Tensor& attention_, const Tensor& sizes_, double threshold, int64_t view,
            bool squashed) {
    check_shape(kName, "attention", attention_, {-1, -1, -1}, "[N, h, w]");
    check_shape(kName, "sizes", sizes_, {attention_.size(0), 2}, "[N, 2] like attention");
    check_dtype(kName, "attention", attention_, at::kFloat);
    check_dtype(kName, "sizes", sizes_, at::kLong);
    check_same_device(kName, "sizes", sizes_, "attention", attention_);
    const int64_t height = attention_.size(1), width = attention_.size(2);
    TORCH_CHECK_VALUE(height > 0 && width > 0, kName,
                      ": attention must have at least one position, got ", attention_.sizes());
    TORCH_CHECK_VALUE(height <= view && width <= view && view <= kMostView, kName,
                      ": view must be from the map's size to ", kMostView, ", got ", view,
                      " for a map of ", height, " x ", width);
    TORCH_CHECK_VALUE(threshold >= 0 && threshold < 1, kName, ": threshold must be in [0, 1), got ",
                      threshold);
    attention = attention_.contiguous();
    sizes = sizes_.contiguous();
    boxes = at::empty({attention.size(0), 4}, sizes.options());
    // As OpenCV's threshold does with 8-bit data.
    const int kept_above = int(std::floor(255.0 * threshold));
    in = {data<float>(attention),
          data<int64_t>(sizes),
          attention.size(0),
          height,
          width,
          view,
          kept_above,
          squashed};
  }
};

Tensor region_box_cpu_op(const Tensor& attention, const Tensor& sizes, double threshold,
                         int64_t view, bool squashed) {
  const Arguments arguments(attention, sizes, threshold, view, squashed);
  const int64_t* size = arguments.in.sizes;
  for (int64_t i = 0; i < arguments.in.maps; ++i, size += 2) {
    TORCH_CHECK_VALUE(size[0] > 0 && size[1] > 0, kName, ": sizes must be at least 1, got ",
                      at::IntArrayRef(size, 2), " for map ", i);
  }
  region_box_cpu(arguments.in, mutable_data<int64_t>(arguments.boxes));
  return arguments.boxes;
}

#ifdef PLACKET_CUDA
Tensor region_box_cuda(const Tensor& attention, const Tensor& sizes, double threshold, int64_t view,
                       bool squashed) {
  const at::OptionalDeviceGuard guard(at::device_of(attention));
  const Arguments arguments(attention, sizes, threshold, view, squashed);
  check_launch(kName, launch_region_box(arguments.in, mutable_data<int64_t>(arguments.boxes),
                                        current_stream(attention)));
  return arguments.boxes;
}
#endif

Tensor region_box_autocast(const Tensor& attention, const Tensor& sizes, double threshold,
                           int64_t view, bool squashed) {
  const BelowAutocast below;
  return region_box(at_least_float32(attention), sizes, threshold, view, squashed);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "region_box(Tensor attention, Tensor sizes, float threshold=0.1, int view=224, "
      "bool squashed=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) { m.impl("region_box", region_box_cpu_op); }
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) { m.impl("region_box", region_box_cuda); }
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("region_box", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) { m.impl("region_box", region_box_autocast); }
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) { m.impl("region_box", region_box_autocast); }

}  // namespace placket
