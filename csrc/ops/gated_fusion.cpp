#include "ops/gated_fusion.h"

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
#include "kernels/gated_fusion.h"
#include "ops/autocast.h"

namespace placket {

using at::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

Pair gated_fusion(const Tensor& gate_logits, const Tensor& selection_logits, const Tensor& image,
                  const Tensor& text, const Tensor& image_clip, const Tensor& text_clip) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::gated_fusion", "")
                             .typed<decltype(gated_fusion)>();
  return op.call(gate_logits, selection_logits, image, text, image_clip, text_clip);
}

namespace {

constexpr const char* kName = "gated_fusion";
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradients of image_clip and text_clip are empty unless asked for.
Six gated_fusion_backward(const Tensor& grad, const Tensor& gate_logits,
                          const Tensor& selection_logits, const Tensor& image, const Tensor& text,
                          const Tensor& image_clip, const Tensor& text_clip, bool clip_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::_gated_fusion_backward", "")
                             .typed<decltype(gated_fusion_backward)>();
  return op.call(grad, gate_logits, selection_logits, image, text, image_clip, text_clip,
                 clip_grad);
}

// The rows as the kernels want them; holds the contiguous copies alive.
struct Rows {
  Tensor gate_logits, selection_logits, image, text, image_clip, text_clip;

  Rows(const Tensor& gate, const Tensor& selection, const Tensor& image, const Tensor& text,
       const Tensor& image_clip, const Tensor& text_clip)
      : gate_logits(gate.contiguous()),
        selection_logits(selection.contiguous()),
        image(image.contiguous()),
        text(text.contiguous()),
        image_clip(image_clip.contiguous()),
        text_clip(text_clip.contiguous()) {
    check_shape(kName, "gate_logits", gate, {-1, -1}, "[N, D]");
    check_floating(kName, "gate_logits", gate);
    const int64_t rows = gate.size(0), dims = gate.size(1);
    check_shape(kName, "selection_logits", selection, {rows}, "[N] with the N of gate_logits");
    check_like_gate("selection_logits", selection);
    const std::pair<const char*, const Tensor&> features[] = {
        {"image", image}, {"text", text}, {"image_clip", image_clip}, {"text_clip", text_clip}};
    for (const auto& [name, tensor] : features) {
      check_shape(kName, name, tensor, {rows, dims}, "[N, D] like gate_logits");
      check_like_gate(name, tensor);
    }
  }

  template <class T>
  GatedFusion<T> as() const {
    return {data<T>(gate_logits), data<T>(selection_logits), data<T>(image),
            data<T>(text),        data<T>(image_clip),       data<T>(text_clip),
            gate_logits.size(0),  gate_logits.size(1)};
  }

 private:
  void check_like_gate(const char* name, const Tensor& tensor) const {
    check_same_dtype(kName, name, tensor, "gate_logits", gate_logits);
    check_same_device(kName, name, tensor, "gate_logits", gate_logits);
  }
};

// launch(in, query, image_share) runs the kernel of one device.
template <class Launch>
Pair forward(const Rows& rows, const Launch& launch) {
  const Tensor query = at::empty_like(rows.gate_logits);
  const Tensor image_share = at::empty_like(rows.selection_logits);
  dispatch_floating(kName, query.scalar_type(), [&]<class T>(TypeTag<T>) {
    launch(rows.as<T>(), mutable_data<T>(query), mutable_data<T>(image_share));
  });
  return {query, image_share};
}

template <class Launch>
Six backward(const Tensor& grad, const Rows& rows, bool clip_grad, const Launch& launch) {
  const Tensor g = grad.contiguous();
  const auto like = [](const Tensor& tensor) { return at::empty_like(tensor); };
  const auto wanted = [&](const Tensor& tensor) {
    return clip_grad ? at::empty_like(tensor) : at::empty({0}, tensor.options());
  };
  const Tensor of_gate = like(rows.gate_logits), of_selection = like(rows.selection_logits);
  const Tensor of_image = like(rows.image), of_text = like(rows.text);
  const Tensor of_image_clip = wanted(rows.image_clip), of_text_clip = wanted(rows.text_clip);
  dispatch_floating(kName, g.scalar_type(), [&]<class T>(TypeTag<T>) {
    launch(rows.as<T>(), data<T>(g),
           GatedFusionGradients<T>{mutable_data<T>(of_gate), mutable_data<T>(of_selection),
                                   mutable_data<T>(of_image), mutable_data<T>(of_text),
                                   clip_grad ? mutable_data<T>(of_image_clip) : nullptr,
                                   clip_grad ? mutable_data<T>(of_text_clip) : nullptr});
  });
  return {of_gate, of_selection, of_image, of_text, of_image_clip, of_text_clip};
}

Pair gated_fusion_cpu_op(const Tensor& gate_logits, const Tensor& selection_logits,
                         const Tensor& image, const Tensor& text, const Tensor& image_clip,
                         const Tensor& text_clip) {
  return forward(
      Rows(gate_logits, selection_logits, image, text, image_clip, text_clip),
      [](const auto& in, auto* query, auto* share) { gated_fusion_cpu(in, query, share); });
}

Six gated_fusion_backward_cpu_op(const Tensor& grad, const Tensor& gate_logits,
                                 const Tensor& selection_logits, const Tensor& image,
                                 const Tensor& text, const Tensor& image_clip,
                                 const Tensor& text_clip, bool clip_grad) {
  return backward(grad, Rows(gate_logits, selection_logits, image, text, image_clip, text_clip),
                  clip_grad, [](const auto& in, const auto* of_query, const auto& out) {
                    gated_fusion_backward_cpu(in, of_query, out);
                  });
}

#ifdef PLACKET_CUDA
Pair gated_fusion_cuda(const Tensor& gate_logits, const Tensor& selection_logits,
                       const Tensor& image, const Tensor& text, const Tensor& image_clip,
                       const Tensor& text_clip) {
  const at::OptionalDeviceGuard guard(at::device_of(gate_logits));
  return forward(Rows(gate_logits, selection_logits, image, text, image_clip, text_clip),
                 [&](const auto& in, auto* query, auto* share) {
                   check_launch(kName,
                                launch_gated_fusion(in, query, share, current_stream(gate_logits)));
                 });
}

Six gated_fusion_backward_cuda(const Tensor& grad, const Tensor& gate_logits,
                               const Tensor& selection_logits, const Tensor& image,
                               const Tensor& text, const Tensor& image_clip,
                               const Tensor& text_clip, bool clip_grad) {
  const at::OptionalDeviceGuard guard(at::device_of(gate_logits));
  return backward(grad, Rows(gate_logits, selection_logits, image, text, image_clip, text_clip),
                  clip_grad, [&](const auto& in, const auto* of_query, const auto& out) {
                    check_launch(kName, launch_gated_fusion_backward(in, of_query, out,
                                                                     current_stream(gate_logits)));
                  });
}
#endif

struct GatedFusionFunction : torch::autograd::Function<GatedFusionFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& gate_logits,
                                                const Tensor& selection_logits, const Tensor& image,
                                                const Tensor& text, const Tensor& image_clip,
                                                const Tensor& text_clip) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [query, image_share] =
        gated_fusion(gate_logits, selection_logits, image, text, image_clip, text_clip);
    ctx->mark_non_differentiable({image_share});
    ctx->save_for_backward({gate_logits, selection_logits, image, text, image_clip, text_clip});
    return {query, image_share};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const bool clip_grad = ctx->needs_input_grad(4) || ctx->needs_input_grad(5);
    const auto [gate, selection, image, text, image_clip, text_clip] = gated_fusion_backward(
        grad[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], clip_grad);
    if (!clip_grad) return {gate, selection, image, text, Tensor(), Tensor()};
    return {gate, selection, image, text, image_clip, text_clip};
  }
};

Pair gated_fusion_autograd(const Tensor& gate_logits, const Tensor& selection_logits,
                           const Tensor& image, const Tensor& text, const Tensor& image_clip,
                           const Tensor& text_clip) {
  const auto out =
      GatedFusionFunction::apply(gate_logits, selection_logits, image, text, image_clip, text_clip);
  return {out[0], out[1]};
}

Pair gated_fusion_autocast(const Tensor& gate_logits, const Tensor& selection_logits,
                           const Tensor& image, const Tensor& text, const Tensor& image_clip,
                           const Tensor& text_clip) {
  const BelowAutocast below;
  return gated_fusion(at_least_float32(gate_logits), at_least_float32(selection_logits),
                      at_least_float32(image), at_least_float32(text), at_least_float32(image_clip),
                      at_least_float32(text_clip));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "gated_fusion(Tensor gate_logits, Tensor selection_logits, Tensor image, Tensor text, Tensor "
      "image_clip, Tensor text_clip) -> (Tensor query, Tensor image_share)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_gated_fusion_backward(Tensor grad, Tensor gate_logits, Tensor selection_logits, Tensor "
      "image, Tensor text, Tensor image_clip, Tensor text_clip, bool clip_grad) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("gated_fusion", gated_fusion_cpu_op);
  m.impl("_gated_fusion_backward", gated_fusion_backward_cpu_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("gated_fusion", gated_fusion_cuda);
  m.impl("_gated_fusion_backward", gated_fusion_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("gated_fusion", gated_fusion_autograd);
  m.impl("_gated_fusion_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) { m.impl("gated_fusion", gated_fusion_autocast); }
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) { m.impl("gated_fusion", gated_fusion_autocast); }

}  // namespace placket
