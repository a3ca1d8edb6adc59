#include "ops/region_patch_info_nce.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/region_patch_info_nce.h"
#include "ops/autocast.h"

namespace placket {

using at::Tensor;

Tensor region_patch_info_nce(const Tensor& region, const Tensor& patch, const Tensor& background,
                             const Tensor& labels, const Tensor& attributes, double temperature,
                             double alpha) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::region_patch_info_nce", "")
                             .typed<decltype(region_patch_info_nce)>();
  return op.call(region, patch, background, labels, attributes, temperature, alpha);
}

namespace {

constexpr const char* kName = "region_patch_info_nce";
using Triple = std::tuple<Tensor, Tensor, Tensor>;
// The loss and its gradients in region, patch and background.
using WithGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

WithGradients with_gradients(const Tensor& region, const Tensor& patch, const Tensor& background,
                             const Tensor& labels, const Tensor& attributes, double temperature,
                             double alpha) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::_region_patch_info_nce_gradients", "")
                             .typed<decltype(with_gradients)>();
  return op.call(region, patch, background, labels, attributes, temperature, alpha);
}

// The embeddings are there so that a second derivative is refused and not taken for 0.
Triple region_patch_info_nce_backward(const Tensor& grad, const Tensor& grad_region,
                                      const Tensor& grad_patch, const Tensor& grad_background,
                                      const Tensor& region, const Tensor& patch,
                                      const Tensor& background) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::_region_patch_info_nce_backward", "")
                             .typed<decltype(region_patch_info_nce_backward)>();
  return op.call(grad, grad_region, grad_patch, grad_background, region, patch, background);
}

Triple region_patch_info_nce_backward_op(const Tensor& grad, const Tensor& grad_region,
                                         const Tensor& grad_patch, const Tensor& grad_background,
                                         const Tensor&, const Tensor&, const Tensor&) {
  return {grad_region * grad, grad_patch * grad, grad_background * grad};
}

// The rows in the order of their attribute, and where each row's attribute begins and ends.
struct Order {
  Tensor rows, labels, begin, end;

  Order(const Tensor& given, const Tensor& attributes) {
    const auto [sorted, order] = at::sort(attributes, /*stable=*/true, 0, /*descending=*/false);
    rows = order;
    labels = given.index_select(0, order);
    begin = at::searchsorted(sorted, sorted);
    end = at::searchsorted(sorted, sorted, /*out_int32=*/false, /*right=*/true);
  }
};

// Which kernels run, and how much of the matrix of cosines there is at a time.
struct OnCpu {
  // Anchors of a block: so few that it stays in cache between the matrix product and the row kernel
  // and has few attributes, so many that the product is efficient.
  static constexpr int64_t kLeast = 64, kMost = 256;

  // A block ends with an attribute where it can: then its backgrounds are that attribute's alone.
  static int64_t block_end(const Order& order, int64_t first, int64_t rows) {
    return std::min(first + kMost, data<int64_t>(order.end)[std::min(first + kLeast, rows) - 1]);
  }
  // The rows that share an attribute with an anchor of the block.
  static std::pair<int64_t, int64_t> same_attributes(const Order& order, int64_t first,
                                                     int64_t last, int64_t) {
    return {data<int64_t>(order.begin)[first], data<int64_t>(order.end)[last - 1]};
  }
  static int64_t most_anchors(int64_t rows) { return std::min(rows, kMost); }

  template <class T>
  static void unit_rows(const UnitRows<T>& pass) {
    unit_rows_cpu(pass);
  }
  template <class T>
  static void unit_rows_backward(const UnitRowsBackward<T>& pass) {
    unit_rows_backward_cpu(pass);
  }
  template <class A>
  static void contrast(const ContrastBlock<A>& block, A* loss) {
    contrast_cpu(block, loss);
  }
  template <class A>
  static void contrast_gradient(const ContrastBlock<A>& block, A* loss) {
    contrast_gradient_cpu(block, loss);
  }
};

#ifdef PLACKET_CUDA
struct OnCuda {
  static constexpr int64_t kBlockElements = 1 << 26;
  Stream stream;

  static int64_t most_anchors(int64_t rows) {
    return std::min(rows, std::max<int64_t>(64, kBlockElements / rows));
  }
  static int64_t block_end(const Order&, int64_t first, int64_t rows) {
    return std::min(first + most_anchors(rows), rows);
  }
  // To know fewer would take a synchronisation.
  static std::pair<int64_t, int64_t> same_attributes(const Order&, int64_t, int64_t, int64_t rows) {
    return {0, rows};
  }

  template <class T>
  void unit_rows(const UnitRows<T>& pass) const {
    check_launch(kName, launch_unit_rows(pass, stream));
  }
  template <class T>
  void unit_rows_backward(const UnitRowsBackward<T>& pass) const {
    check_launch(kName, launch_unit_rows_backward(pass, stream));
  }
  template <class A>
  void contrast(const ContrastBlock<A>& block, A* loss) const {
    check_launch(kName, launch_contrast(block, loss, stream));
  }
  template <class A>
  void contrast_gradient(const ContrastBlock<A>& block, A* loss) const {
    check_launch(kName, launch_contrast_gradient(block, loss, stream));
  }
};
#endif

// Unit rows in the order of their attribute.
template <class T>
struct Embedding {
  Tensor unit, inverse;

  template <class Device>
  Embedding(const Tensor& given, const Order& order, const Device& device) {
    using A = accumulate_t<T>;
    const Tensor rows = given.contiguous();
    const auto wide = rows.options().dtype(c10::CppTypeToScalarType<A>::value);
    unit = at::empty(rows.sizes(), wide);
    inverse = at::empty({rows.size(0)}, wide);
    device.unit_rows(UnitRows<T>{data<T>(rows), data<int64_t>(order.rows), rows.size(0),
                                 rows.size(1), mutable_data<A>(unit), mutable_data<A>(inverse)});
  }

  template <class Device>
  Tensor backward(const Tensor& grad, const Order& order, const Device& device) const {
    using A = accumulate_t<T>;
    const Tensor out = at::empty(
        unit.sizes(),
        unit.options().dtype(std::is_same_v<T, BFloat16> ? at::kBFloat16 : unit.scalar_type()));
    device.unit_rows_backward(UnitRowsBackward<T>{data<A>(grad), data<A>(unit), data<A>(inverse),
                                                  data<int64_t>(order.rows), unit.size(0),
                                                  unit.size(1), mutable_data<T>(out)});
    return out;
  }
};

// Calls f(block, its anchors, patch cosines, background cosines) for every block of anchors.
template <class T, class Device, class F>
void for_each_block(const Embedding<T>& region, const Embedding<T>& patch,
                    const Embedding<T>& background, const Order& order, double temperature,
                    double alpha, const Device& device, const F& f) {
  using A = accumulate_t<T>;
  const int64_t rows = region.unit.size(0), most = device.most_anchors(rows) * rows;
  const Tensor patches = at::empty({most}, region.unit.options());
  const Tensor outside = at::empty({alpha > 0 ? most : 0}, region.unit.options());
  for (int64_t first = 0; first < rows;) {
    const int64_t last = device.block_end(order, first, rows), anchors = last - first;
    const auto [begin, end] = device.same_attributes(order, first, last, rows);
    const int64_t backgrounds = alpha > 0 ? end - begin : 0;
    const Tensor r = region.unit.narrow(0, first, anchors);
    Tensor s = patches.narrow(0, 0, anchors * rows).view({anchors, rows});
    Tensor t = outside.narrow(0, 0, anchors * backgrounds).view({anchors, backgrounds});
    at::mm_out(s, r, patch.unit.t());
    if (backgrounds > 0) at::mm_out(t, r, background.unit.narrow(0, begin, backgrounds).t());
    f(ContrastBlock<A>{data<int64_t>(order.labels), data<int64_t>(order.begin),
                       data<int64_t>(order.end), first, anchors, rows, begin, backgrounds,
                       temperature, alpha, mutable_data<A>(s), mutable_data<A>(t)},
      r, s, t);
    first = last;
  }
}

void check(const Tensor& region, const Tensor& patch, const Tensor& background,
           const Tensor& labels, const Tensor& attributes, double temperature, double alpha) {
  check_shape(kName, "region", region, {-1, -1}, "[N, E]");
  check_floating(kName, "region", region);
  for (const auto& [name, tensor] : {std::pair{"patch", patch}, {"background", background}}) {
    check_shape(kName, name, tensor, {region.size(0), region.size(1)}, "[N, E] like region");
    check_same_dtype(kName, name, tensor, "region", region);
    check_same_device(kName, name, tensor, "region", region);
  }
  for (const auto& [name, tensor] : {std::pair{"labels", labels}, {"attributes", attributes}}) {
    check_shape(kName, name, tensor, {region.size(0)}, "[N] with the N of region");
    check_dtype(kName, name, tensor, at::kLong);
    check_same_device(kName, name, tensor, "region", region);
  }
  TORCH_CHECK_VALUE(temperature > 0, kName, ": temperature must be above 0, got ", temperature);
  TORCH_CHECK_VALUE(alpha >= 0, kName, ": alpha must be at least 0, got ", alpha);
}

at::TensorOptions loss_options(const Tensor& region) {
  return region.options().dtype(region.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

template <class Device>
Tensor forward(const Tensor& region, const Tensor& patch, const Tensor& background,
               const Tensor& labels, const Tensor& attributes, double temperature, double alpha,
               const Device& device) {
  check(region, patch, background, labels, attributes, temperature, alpha);
  if (region.size(0) == 0) return at::zeros({}, loss_options(region));
  const Tensor losses = at::empty({region.size(0)}, loss_options(region));
  const Order order(labels, attributes);
  dispatch_floating(kName, region.scalar_type(), [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const Embedding<T> r(region, order, device), p(patch, order, device);
    const Embedding<T> b(background, order, device);
    for_each_block(r, p, b, order, temperature, alpha, device,
                   [&](const ContrastBlock<A>& block, const Tensor&, const Tensor&, const Tensor&) {
                     device.contrast(block, mutable_data<A>(losses) + block.first);
                   });
  });
  return losses.mean();
}

// One pair of products gives the cosines for the loss and for the gradients, which take four more.
template <class Device>
WithGradients forward_with_gradients(const Tensor& region, const Tensor& patch,
                                     const Tensor& background, const Tensor& labels,
                                     const Tensor& attributes, double temperature, double alpha,
                                     const Device& device) {
  check(region, patch, background, labels, attributes, temperature, alpha);
  if (region.size(0) == 0) {
    return {at::zeros({}, loss_options(region)), at::empty(region.sizes(), region.options()),
            at::empty(patch.sizes(), patch.options()),
            at::empty(background.sizes(), background.options())};
  }
  const Tensor losses = at::empty({region.size(0)}, loss_options(region));
  const Order order(labels, attributes);
  Triple out;
  dispatch_floating(kName, region.scalar_type(), [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const Embedding<T> r(region, order, device), p(patch, order, device);
    const Embedding<T> b(background, order, device);
    const Tensor of_r = at::empty(r.unit.sizes(), r.unit.options());
    const Tensor of_p = at::zeros(r.unit.sizes(), r.unit.options());
    const Tensor of_b = at::zeros(r.unit.sizes(), r.unit.options());
    for_each_block(r, p, b, order, temperature, alpha, device,
                   [&](const ContrastBlock<A>& block, const Tensor& anchors, const Tensor& s,
                       const Tensor& t) {
                     device.contrast_gradient(block, mutable_data<A>(losses) + block.first);
                     Tensor of_anchors = of_r.narrow(0, block.first, block.anchors);
                     at::mm_out(of_anchors, s, p.unit);
                     of_p.addmm_(s.t(), anchors);
                     if (block.backgrounds == 0) return;
                     const int64_t begin = block.backgrounds_first;
                     of_anchors.addmm_(t, b.unit.narrow(0, begin, block.backgrounds));
                     of_b.narrow(0, begin, block.backgrounds).addmm_(t.t(), anchors);
                   });
    out = {r.backward(of_r, order, device), p.backward(of_p, order, device),
           b.backward(of_b, order, device)};
  });
  return std::tuple_cat(std::make_tuple(losses.mean()), std::move(out));
}

Tensor region_patch_info_nce_cpu(const Tensor& region, const Tensor& patch,
                                 const Tensor& background, const Tensor& labels,
                                 const Tensor& attributes, double temperature, double alpha) {
  return forward(region, patch, background, labels, attributes, temperature, alpha, OnCpu{});
}

WithGradients with_gradients_cpu(const Tensor& region, const Tensor& patch,
                                 const Tensor& background, const Tensor& labels,
                                 const Tensor& attributes, double temperature, double alpha) {
  return forward_with_gradients(region, patch, background, labels, attributes, temperature, alpha,
                                OnCpu{});
}

#ifdef PLACKET_CUDA
Tensor region_patch_info_nce_cuda(const Tensor& region, const Tensor& patch,
                                  const Tensor& background, const Tensor& labels,
                                  const Tensor& attributes, double temperature, double alpha) {
  const at::OptionalDeviceGuard guard(at::device_of(region));
  return forward(region, patch, background, labels, attributes, temperature, alpha,
                 OnCuda{current_stream(region)});
}

WithGradients with_gradients_cuda(const Tensor& region, const Tensor& patch,
                                  const Tensor& background, const Tensor& labels,
                                  const Tensor& attributes, double temperature, double alpha) {
  const at::OptionalDeviceGuard guard(at::device_of(region));
  return forward_with_gradients(region, patch, background, labels, attributes, temperature, alpha,
                                OnCuda{current_stream(region)});
}
#endif

struct RegionPatchInfoNceFunction : torch::autograd::Function<RegionPatchInfoNceFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& region,
                        const Tensor& patch, const Tensor& background, const Tensor& labels,
                        const Tensor& attributes, double temperature, double alpha) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [loss, r, p, b] =
        with_gradients(region, patch, background, labels, attributes, temperature, alpha);
    ctx->save_for_backward({r, p, b, region, patch, background});
    return loss;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const auto [r, p, b] = region_patch_info_nce_backward(grad[0], saved[0], saved[1], saved[2],
                                                          saved[3], saved[4], saved[5]);
    return {r, p, b, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor region_patch_info_nce_autograd(const Tensor& region, const Tensor& patch,
                                      const Tensor& background, const Tensor& labels,
                                      const Tensor& attributes, double temperature, double alpha) {
  const bool wanted =
      at::GradMode::is_enabled() &&
      (region.requires_grad() || patch.requires_grad() || background.requires_grad());
  if (!wanted) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return region_patch_info_nce(region, patch, background, labels, attributes, temperature, alpha);
  }
  return RegionPatchInfoNceFunction::apply(region, patch, background, labels, attributes,
                                           temperature, alpha);
}

Tensor region_patch_info_nce_autocast(const Tensor& region, const Tensor& patch,
                                      const Tensor& background, const Tensor& labels,
                                      const Tensor& attributes, double temperature, double alpha) {
  const BelowAutocast below;
  return region_patch_info_nce(at_least_float32(region), at_least_float32(patch),
                               at_least_float32(background), labels, attributes, temperature,
                               alpha);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "region_patch_info_nce(Tensor region, Tensor patch, Tensor background, Tensor labels, Tensor "
      "attributes, float temperature=0.07, float alpha=12.0) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_region_patch_info_nce_gradients(Tensor region, Tensor patch, Tensor background, Tensor "
      "labels, Tensor attributes, float temperature, float alpha) -> (Tensor, Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_region_patch_info_nce_backward(Tensor grad, Tensor grad_region, Tensor grad_patch, Tensor "
      "grad_background, Tensor region, Tensor patch, Tensor background) -> (Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("region_patch_info_nce", region_patch_info_nce_cpu);
  m.impl("_region_patch_info_nce_gradients", with_gradients_cpu);
  m.impl("_region_patch_info_nce_backward", region_patch_info_nce_backward_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("region_patch_info_nce", region_patch_info_nce_cuda);
  m.impl("_region_patch_info_nce_gradients", with_gradients_cuda);
  m.impl("_region_patch_info_nce_backward", region_patch_info_nce_backward_op);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("region_patch_info_nce", region_patch_info_nce_autograd);
  m.impl("_region_patch_info_nce_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) {
  m.impl("region_patch_info_nce", region_patch_info_nce_autocast);
}
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) {
  m.impl("region_patch_info_nce", region_patch_info_nce_autocast);
}

}  // namespace placket
