#include "ops/cosine_triplet.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/cosine_triplet.h"
#include "ops/autocast.h"

namespace placket {

using at::Tensor;

Tensor cosine_triplet(const Tensor& anchor, const Tensor& positive, const Tensor& negative,
                      double margin) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::cosine_triplet", "")
                             .typed<decltype(cosine_triplet)>();
  return op.call(anchor, positive, negative, margin);
}

namespace {

constexpr const char* kName = "cosine_triplet";
using Triple = std::tuple<Tensor, Tensor, Tensor>;

Triple cosine_triplet_backward(const Tensor& grad, const Tensor& anchor, const Tensor& positive,
                               const Tensor& negative, double margin) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::_cosine_triplet_backward", "")
                             .typed<decltype(cosine_triplet_backward)>();
  return op.call(grad, anchor, positive, negative, margin);
}

// The rows as the kernels want them; holds the contiguous copies alive.
struct Rows {
  Tensor anchor, positive, negative;
  double margin;

  Rows(const Tensor& a, const Tensor& p, const Tensor& n, double margin) : margin(margin) {
    check_shape(kName, "anchor", a, {-1, -1}, "[N, D]");
    check_shape(kName, "positive", p, {a.size(0), a.size(1)}, "[N, D] like anchor");
    check_shape(kName, "negative", n, {a.size(0), a.size(1)}, "[N, D] like anchor");
    check_floating(kName, "anchor", a);
    check_same_dtype(kName, "positive", p, "anchor", a);
    check_same_dtype(kName, "negative", n, "anchor", a);
    check_same_device(kName, "positive", p, "anchor", a);
    check_same_device(kName, "negative", n, "anchor", a);
    anchor = a.contiguous();
    positive = p.contiguous();
    negative = n.contiguous();
  }

  template <class T>
  CosineTriplet<T> as() const {
    return {data<T>(anchor), data<T>(positive), data<T>(negative),
            anchor.size(0),  anchor.size(1),    margin};
  }
};

Tensor cosine_triplet_cpu_op(const Tensor& anchor, const Tensor& positive, const Tensor& negative,
                             double margin) {
  const Rows rows(anchor, positive, negative, margin);
  Tensor hinge = at::empty({anchor.size(0)}, anchor.options());
  dispatch_floating(kName, anchor.scalar_type(), [&]<class T>(TypeTag<T>) {
    cosine_triplet_cpu(rows.as<T>(), mutable_data<T>(hinge));
  });
  return hinge;
}

Triple cosine_triplet_backward_cpu_op(const Tensor& grad, const Tensor& anchor,
                                      const Tensor& positive, const Tensor& negative,
                                      double margin) {
  const Rows rows(anchor, positive, negative, margin);
  const Tensor g = grad.contiguous();
  Triple out(at::empty_like(rows.anchor), at::empty_like(rows.positive),
             at::empty_like(rows.negative));
  dispatch_floating(kName, anchor.scalar_type(), [&]<class T>(TypeTag<T>) {
    cosine_triplet_backward_cpu(rows.as<T>(), data<T>(g), mutable_data<T>(std::get<0>(out)),
                                mutable_data<T>(std::get<1>(out)),
                                mutable_data<T>(std::get<2>(out)));
  });
  return out;
}

#ifdef PLACKET_CUDA
Tensor cosine_triplet_cuda(const Tensor& anchor, const Tensor& positive, const Tensor& negative,
                           double margin) {
  const Rows rows(anchor, positive, negative, margin);
  const at::OptionalDeviceGuard guard(at::device_of(anchor));
  Tensor hinge = at::empty({anchor.size(0)}, anchor.options());
  dispatch_floating(kName, anchor.scalar_type(), [&]<class T>(TypeTag<T>) {
    check_launch(
        kName, launch_cosine_triplet(rows.as<T>(), mutable_data<T>(hinge), current_stream(anchor)));
  });
  return hinge;
}

Triple cosine_triplet_backward_cuda(const Tensor& grad, const Tensor& anchor,
                                    const Tensor& positive, const Tensor& negative, double margin) {
  const Rows rows(anchor, positive, negative, margin);
  const at::OptionalDeviceGuard guard(at::device_of(anchor));
  const Tensor g = grad.contiguous();
  Triple out(at::empty_like(rows.anchor), at::empty_like(rows.positive),
             at::empty_like(rows.negative));
  dispatch_floating(kName, anchor.scalar_type(), [&]<class T>(TypeTag<T>) {
    check_launch(kName, launch_cosine_triplet_backward(
                            rows.as<T>(), data<T>(g), mutable_data<T>(std::get<0>(out)),
                            mutable_data<T>(std::get<1>(out)), mutable_data<T>(std::get<2>(out)),
                            current_stream(anchor)));
  });
  return out;
}
#endif

struct CosineTripletFunction : torch::autograd::Function<CosineTripletFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& anchor,
                        const Tensor& positive, const Tensor& negative, double margin) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({anchor, positive, negative});
    ctx->saved_data["margin"] = margin;
    return cosine_triplet(anchor, positive, negative, margin);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const auto [a, p, n] = cosine_triplet_backward(grad[0], saved[0], saved[1], saved[2],
                                                   ctx->saved_data["margin"].toDouble());
    return {a, p, n, Tensor()};
  }
};

Tensor cosine_triplet_autograd(const Tensor& anchor, const Tensor& positive, const Tensor& negative,
                               double margin) {
  return CosineTripletFunction::apply(anchor, positive, negative, margin);
}

Tensor cosine_triplet_autocast(const Tensor& anchor, const Tensor& positive, const Tensor& negative,
                               double margin) {
  const BelowAutocast below;
  return cosine_triplet(at_least_float32(anchor), at_least_float32(positive),
                        at_least_float32(negative), margin);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "cosine_triplet(Tensor anchor, Tensor positive, Tensor negative, float margin=0.2) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_cosine_triplet_backward(Tensor grad, Tensor anchor, Tensor positive, Tensor negative, "
      "float margin) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("cosine_triplet", cosine_triplet_cpu_op);
  m.impl("_cosine_triplet_backward", cosine_triplet_backward_cpu_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("cosine_triplet", cosine_triplet_cuda);
  m.impl("_cosine_triplet_backward", cosine_triplet_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("cosine_triplet", cosine_triplet_autograd);
  m.impl("_cosine_triplet_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) { m.impl("cosine_triplet", cosine_triplet_autocast); }
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) { m.impl("cosine_triplet", cosine_triplet_autocast); }

}  // namespace placket
