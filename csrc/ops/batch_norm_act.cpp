#include "ops/batch_norm_act.h"

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
#include "kernels/batch_norm_act.h"

namespace placket {

using at::Tensor;
using std::optional;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

Triple batch_norm_act(const Tensor& input, const optional<Tensor>& residual, const Tensor& weight,
                      const Tensor& bias, int64_t groups, double eps, bool relu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::batch_norm_act", "")
                             .typed<decltype(batch_norm_act)>();
  return op.call(input, residual, weight, bias, groups, eps, relu);
}

namespace {

constexpr const char* kName = "batch_norm_act";
using Quad = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// output is empty without relu; the residual's gradient is empty unless asked for.
Quad batch_norm_act_backward(const Tensor& grad, const Tensor& input, const Tensor& output,
                             const Tensor& weight, const Tensor& mean, const Tensor& variance,
                             double eps, bool residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::_batch_norm_act_backward", "")
                             .typed<decltype(batch_norm_act_backward)>();
  return op.call(grad, input, output, weight, mean, variance, eps, residual);
}

Tensor channels_last(const Tensor& map) { return map.contiguous(at::MemoryFormat::ChannelsLast); }

at::ScalarType statistics_dtype(const Tensor& map) {
  return map.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

BatchNormShape shape_of(const Tensor& input, int64_t groups) {
  return {groups, input.size(0) / groups * input.size(2) * input.size(3), input.size(1)};
}

// launch(pass) runs the kernels of one device.
template <class Launch>
Triple forward(const Tensor& input, const optional<Tensor>& residual, const Tensor& weight,
               const Tensor& bias, int64_t groups, double eps, bool relu, const Launch& launch) {
  check_shape(kName, "input", input, {-1, -1, -1, -1}, "[B, C, h, w]");
  check_floating(kName, "input", input);
  TORCH_CHECK_VALUE(groups >= 1 && input.size(0) % groups == 0, kName,
                    ": groups must divide the batch of ", input.size(0), ", got ", groups);
  for (const auto& [name, tensor] : {std::pair{"weight", weight}, std::pair{"bias", bias}}) {
    check_shape(kName, name, tensor, {input.size(1)}, "[C]");
    check_dtype(kName, name, tensor, statistics_dtype(input));
    check_same_device(kName, name, tensor, "input", input);
  }
  if (residual.has_value()) {
    TORCH_CHECK_VALUE(residual->sizes() == input.sizes(), kName, ": residual must have shape ",
                      input.sizes(), " like input, got ", residual->sizes());
    check_same_dtype(kName, "residual", *residual, "input", input);
    check_same_device(kName, "residual", *residual, "input", input);
  }
  const Tensor x = channels_last(input);
  const Tensor r = residual.has_value() ? channels_last(*residual) : Tensor();
  const Tensor w = weight.contiguous(), b = bias.contiguous();
  const BatchNormShape shape = shape_of(x, groups);
  const auto options = x.options().dtype(statistics_dtype(x));
  const Tensor workspace = at::empty({shape.workspace()}, options);
  const Tensor mean = at::empty({groups, shape.channels}, options);
  const Tensor variance = at::empty({groups, shape.channels}, options);
  const Tensor output = at::empty_like(x);
  dispatch_floating(kName, x.scalar_type(), [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    if (x.numel() == 0) return;
    launch(BatchNormForward<T>{shape, data<T>(x), r.defined() ? data<T>(r) : nullptr, data<A>(w),
                               data<A>(b), eps, relu, mutable_data<A>(workspace),
                               mutable_data<T>(output), mutable_data<A>(mean),
                               mutable_data<A>(variance)});
  });
  if (x.numel() == 0) {
    mean.zero_();
    variance.zero_();
  }
  return {output, mean, variance};
}

template <class Launch>
Quad backward(const Tensor& grad, const Tensor& input, const Tensor& output, const Tensor& weight,
              const Tensor& mean, const Tensor& variance, double eps, bool residual,
              const Launch& launch) {
  const Tensor g = channels_last(grad), x = channels_last(input), w = weight.contiguous();
  const bool relu = output.dim() == 4;
  const Tensor y = relu ? channels_last(output) : output;
  const BatchNormShape shape = shape_of(x, mean.size(0));
  const Tensor workspace = at::empty({shape.workspace()}, mean.options());
  const Tensor sums = at::empty({2, shape.groups, shape.channels}, mean.options());
  const Tensor grad_input = at::empty_like(x);
  const Tensor grad_residual = residual ? at::empty_like(x) : at::empty({0}, x.options());
  if (x.numel() == 0) sums.zero_();
  dispatch_floating(kName, x.scalar_type(), [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    if (x.numel() == 0) return;
    launch(BatchNormBackward<T>{
        shape, data<T>(g), data<T>(x), relu ? data<T>(y) : nullptr, data<A>(w), data<A>(mean),
        data<A>(variance), eps, mutable_data<A>(workspace), mutable_data<A>(sums),
        mutable_data<T>(grad_input), residual ? mutable_data<T>(grad_residual) : nullptr});
  });
  const Tensor joined = sums.sum(1);
  return {grad_input, grad_residual, joined[1].clone(), joined[0].clone()};
}

Triple batch_norm_act_cpu_op(const Tensor& input, const optional<Tensor>& residual,
                             const Tensor& weight, const Tensor& bias, int64_t groups, double eps,
                             bool relu) {
  return forward(input, residual, weight, bias, groups, eps, relu,
                 [](const auto& pass) { batch_norm_act_cpu(pass); });
}

Quad batch_norm_act_backward_cpu_op(const Tensor& grad, const Tensor& input, const Tensor& output,
                                    const Tensor& weight, const Tensor& mean,
                                    const Tensor& variance, double eps, bool residual) {
  return backward(grad, input, output, weight, mean, variance, eps, residual,
                  [](const auto& pass) { batch_norm_act_backward_cpu(pass); });
}

#ifdef PLACKET_CUDA
Triple batch_norm_act_cuda(const Tensor& input, const optional<Tensor>& residual,
                           const Tensor& weight, const Tensor& bias, int64_t groups, double eps,
                           bool relu) {
  const at::OptionalDeviceGuard guard(at::device_of(input));
  return forward(input, residual, weight, bias, groups, eps, relu, [&](const auto& pass) {
    check_launch(kName, launch_batch_norm_act(pass, current_stream(input)));
  });
}

Quad batch_norm_act_backward_cuda(const Tensor& grad, const Tensor& input, const Tensor& output,
                                  const Tensor& weight, const Tensor& mean, const Tensor& variance,
                                  double eps, bool residual) {
  const at::OptionalDeviceGuard guard(at::device_of(input));
  return backward(
      grad, input, output, weight, mean, variance, eps, residual, [&](const auto& pass) {
        check_launch(kName, launch_batch_norm_act_backward(pass, current_stream(input)));
      });
}
#endif

struct BatchNormActFunction : torch::autograd::Function<BatchNormActFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& input,
                                                const optional<Tensor>& residual,
                                                const Tensor& weight, const Tensor& bias,
                                                int64_t groups, double eps, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, variance] =
        batch_norm_act(input, residual, weight, bias, groups, eps, relu);
    ctx->mark_non_differentiable({mean, variance});
    ctx->save_for_backward(
        {input, relu ? output : at::empty({0}, input.options()), weight, mean, variance});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["residual"] = residual.has_value() && residual->requires_grad();
    return {output, mean, variance};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const bool residual = ctx->saved_data["residual"].toBool();
    const auto [input, other, weight, bias] =
        batch_norm_act_backward(grad[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                                ctx->saved_data["eps"].toDouble(), residual);
    return {input, residual ? other : Tensor(), weight, bias, Tensor(), Tensor(), Tensor()};
  }
};

Triple batch_norm_act_autograd(const Tensor& input, const optional<Tensor>& residual,
                               const Tensor& weight, const Tensor& bias, int64_t groups, double eps,
                               bool relu) {
  const auto out = BatchNormActFunction::apply(input, residual, weight, bias, groups, eps, relu);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "batch_norm_act(Tensor input, Tensor? residual, Tensor weight, Tensor bias, int groups=1, "
      "float eps=1e-05, bool relu=True) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_batch_norm_act_backward(Tensor grad, Tensor input, Tensor output, Tensor weight, Tensor "
      "mean, Tensor variance, float eps, bool residual) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("batch_norm_act", batch_norm_act_cpu_op);
  m.impl("_batch_norm_act_backward", batch_norm_act_backward_cpu_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("batch_norm_act", batch_norm_act_cuda);
  m.impl("_batch_norm_act_backward", batch_norm_act_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("batch_norm_act", batch_norm_act_autograd);
  m.impl("_batch_norm_act_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace placket
