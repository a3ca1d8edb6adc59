#include "ops/attention_pool.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/attention_pool.h"
#include "ops/autocast.h"

namespace placket {

using at::Tensor;
using std::optional;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

Triple attention_pool(const Tensor& logits, const Tensor& values, bool background) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::attention_pool", "")
                             .typed<decltype(attention_pool)>();
  return op.call(logits, values, background);
}

namespace {

constexpr const char* kName = "attention_pool";

// Up to here one read of the values by the own kernel is faster than a GEMM with so few rows.
constexpr int64_t kFewAttributes = 8;
static_assert(kFewAttributes <= AttentionPool<float>::kMaxAttributes);

// A gradient that is not asked for is empty.
std::tuple<Tensor, Tensor> attention_pool_backward(const optional<Tensor>& grad_pooled,
                                                   const optional<Tensor>& grad_background,
                                                   const optional<Tensor>& grad_weights,
                                                   const Tensor& weights, const Tensor& values,
                                                   bool logits_grad, bool values_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::_attention_pool_backward", "")
                             .typed<decltype(attention_pool_backward)>();
  return op.call(grad_pooled, grad_background, grad_weights, weights, values, logits_grad,
                 values_grad);
}

bool is_channels_last(const Tensor& values) {
  return !values.is_contiguous() && values.transpose(1, 2).is_contiguous();
}

// 1 / (P - 1), and 0 where the background is empty.
double background_scale(int64_t positions) {
  return positions > 1 ? 1.0 / double(positions - 1) : 0.0;
}

// torch multiplies bfloat16 matrices on the CPU ten to fifty times slower than float32 ones where
// the processor has no bfloat16 dot product (torch 2.13 on AVX2), and no slower after widening
// where it has one and the matrix is small.
Tensor gemm_operand(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == at::kBFloat16 ? tensor.to(at::kFloat) : tensor;
}

// sums(pass) runs the kernel of one device.
template <class Sums>
Triple forward(const Tensor& logits, const Tensor& values, bool background, const Sums& sums) {
  check_shape(kName, "logits", logits, {-1, -1, -1}, "[B, A, P]");
  check_shape(kName, "values", values, {logits.size(0), -1, logits.size(2)},
              "[B, C, P] with the B and P of logits");
  check_floating(kName, "logits", logits);
  check_same_dtype(kName, "values", values, "logits", logits);
  check_same_device(kName, "values", values, "logits", logits);
  const bool last = is_channels_last(values);
  const Tensor v = last ? values : values.contiguous();
  const int64_t images = v.size(0), channels = v.size(1), positions = v.size(2);
  const int64_t attributes = logits.size(1);
  const auto dtype = v.scalar_type();
  const auto wide = v.options().dtype(dtype == at::kDouble ? at::kDouble : at::kFloat);
  const Tensor w = at::softmax(logits, -1, wide.dtype().toScalarType()).contiguous();
  const Tensor weights = w.to(dtype);
  const bool few = attributes <= kFewAttributes;
  const auto gemm = [&] {
    const Tensor right = gemm_operand(v);
    return at::bmm(right.scalar_type() == dtype ? weights : w, right.transpose(1, 2)).to(dtype);
  };
  Tensor pooled = few ? at::empty({images, attributes, channels}, v.options()) : gemm();
  const Tensor sum = background ? at::empty({images, channels}, wide) : Tensor();
  if (few || background) {
    dispatch_floating(kName, dtype, [&]<class T>(TypeTag<T>) {
      using A = accumulate_t<T>;
      sums(AttentionPool<T>{data<A>(w), data<T>(v), images, few ? attributes : 0, channels,
                            positions, last, mutable_data<T>(pooled),
                            background ? mutable_data<A>(sum) : nullptr});
    });
  }
  if (!background) return {pooled, at::empty({0}, v.options()), weights};
  const double scale = background_scale(positions);
  return {pooled, at::sub((sum * scale).unsqueeze(1), pooled, scale).to(dtype), weights};
}

Triple attention_pool_cpu_op(const Tensor& logits, const Tensor& values, bool background) {
  return forward(logits, values, background, [](const auto& pass) { attention_pool_cpu(pass); });
}

#ifdef PLACKET_CUDA
Triple attention_pool_cuda(const Tensor& logits, const Tensor& values, bool background) {
  const at::OptionalDeviceGuard guard(at::device_of(logits));
  return forward(logits, values, background, [&](const auto& pass) {
    check_launch(kName, launch_attention_pool(pass, current_stream(logits)));
  });
}
#endif

// With s = 1 / (P - 1) and g = grad_pooled - s grad_background, the gradient of the weights is
// g values + grad_weights, and that of the values is g^T weights + s sum_a grad_background.
std::tuple<Tensor, Tensor> attention_pool_backward_op(const optional<Tensor>& grad_pooled,
                                                      const optional<Tensor>& grad_background,
                                                      const optional<Tensor>& grad_weights,
                                                      const Tensor& weights, const Tensor& values,
                                                      bool logits_grad, bool values_grad) {
  const at::OptionalDeviceGuard guard(at::device_of(values));
  const double scale = background_scale(values.size(2));
  const bool last = is_channels_last(values);
  const Tensor w = gemm_operand(weights);
  Tensor grad;
  if (grad_pooled.has_value()) grad = gemm_operand(*grad_pooled);
  if (grad_background.has_value()) {
    const Tensor outside = gemm_operand(*grad_background);
    grad = grad.defined() ? at::sub(grad, outside, scale) : outside * -scale;
  }
  Tensor of_logits = at::empty({0}, values.options()), of_values = of_logits;
  if (logits_grad) {
    Tensor of_weights = grad.defined() ? at::bmm(grad, gemm_operand(values)) : at::zeros_like(w);
    if (grad_weights.has_value()) of_weights = of_weights + *grad_weights;
    of_logits =
        at::_softmax_backward_data(of_weights, w, -1, w.scalar_type()).to(values.scalar_type());
  }
  if (values_grad) {
    if (!grad.defined()) {
      of_values = last ? at::zeros_like(values.transpose(1, 2)).transpose(1, 2)
                       : at::zeros_like(values, {}, {}, {}, {}, at::MemoryFormat::Contiguous);
    } else {
      Tensor of = last ? at::bmm(w.transpose(1, 2), grad) : at::bmm(grad.transpose(1, 2), w);
      if (grad_background.has_value()) {
        const Tensor shared = gemm_operand(*grad_background).sum(1).mul_(scale);
        of.add_(shared.unsqueeze(last ? 1 : 2));
      }
      of = of.to(values.scalar_type());
      of_values = last ? of.transpose(1, 2) : of;
    }
  }
  return {of_logits, of_values};
}

struct AttentionPoolFunction : torch::autograd::Function<AttentionPoolFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& logits, const Tensor& values,
                                                bool background) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [pooled, outside, weights] = attention_pool(logits, values, background);
    if (!background) ctx->mark_non_differentiable({outside});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({weights, values});
    return {pooled, outside, weights};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const auto given = [&](size_t i) {
      return grad[i].defined() ? optional<Tensor>(grad[i]) : std::nullopt;
    };
    const bool of_logits = ctx->needs_input_grad(0), of_values = ctx->needs_input_grad(1);
    const auto [logits, values] = attention_pool_backward(given(0), given(1), given(2), saved[0],
                                                          saved[1], of_logits, of_values);
    return {of_logits ? logits : Tensor(), of_values ? values : Tensor(), Tensor()};
  }
};

Triple attention_pool_autograd(const Tensor& logits, const Tensor& values, bool background) {
  const auto out = AttentionPoolFunction::apply(logits, values, background);
  return {out[0], out[1], out[2]};
}

Triple attention_pool_autocast(const Tensor& logits, const Tensor& values, bool background) {
  const BelowAutocast below;
  const auto dtype = c10::promoteTypes(logits.scalar_type(), values.scalar_type());
  return attention_pool(logits.to(dtype), values.to(dtype), background);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "attention_pool(Tensor logits, Tensor values, bool background=True) -> (Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_attention_pool_backward(Tensor? grad_pooled, Tensor? grad_background, Tensor? "
      "grad_weights, Tensor weights, Tensor values, bool logits_grad, bool values_grad) -> "
      "(Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("attention_pool", attention_pool_cpu_op);
  m.impl("_attention_pool_backward", attention_pool_backward_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("attention_pool", attention_pool_cuda);
  m.impl("_attention_pool_backward", attention_pool_backward_op);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("attention_pool", attention_pool_autograd);
  m.impl("_attention_pool_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) { m.impl("attention_pool", attention_pool_autocast); }
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) { m.impl("attention_pool", attention_pool_autocast); }

}  // namespace placket
