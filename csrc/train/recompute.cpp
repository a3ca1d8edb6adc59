#include "train/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "train/autocast.h"

namespace placket {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// What the backward pass calls again, under the autocast of the forward pass.
struct Call : torch::CustomClassHolder {
  Call(RowFunction function, int64_t part, at::DeviceType device)
      : function(std::move(function)),
        part(part),
        device(device),
        autocast(at::autocast::is_autocast_enabled(device)),
        dtype(at::autocast::get_autocast_dtype(device)) {}

  RowFunction function;
  int64_t part;
  at::DeviceType device;
  bool autocast;
  at::ScalarType dtype;
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  static Tensor forward(AutogradContext* context, const c10::intrusive_ptr<Call>& call,
                        const Tensor& rows, const at::TensorList& weights) {
    variable_list saved = {rows};
    saved.insert(saved.end(), weights.begin(), weights.end());
    context->save_for_backward(saved);
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    std::vector<Tensor> parts;
    for (const Tensor& part : rows.split(call->part)) {
      parts.push_back(call->function(part, weights));
    }
    return at::cat(parts);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto call =
        c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    const variable_list saved = context->get_saved_variables();
    const Tensor& rows = saved.front();
    std::vector<Tensor> weights, learning;
    for (auto weight = saved.begin() + 1; weight != saved.end(); ++weight) {
      weights.push_back(weight->requires_grad() ? weight->detach().requires_grad_() : *weight);
      if (weight->requires_grad()) learning.push_back(weights.back());
    }
    std::vector<Tensor> sums(learning.size());
    const std::vector<Tensor> of_parts = grads.front().split(call->part);
    const std::vector<Tensor> parts = rows.split(call->part);
    for (size_t i = 0; i < parts.size(); ++i) {
      const at::AutoGradMode with_graph(true);
      const AutocastGuard autocast(call->device, call->autocast, call->dtype);
      const Tensor out = call->function(parts[i], weights);
      const variable_list found = torch::autograd::grad(
          {out}, learning, {of_parts[i]}, /*retain_graph=*/false, /*create_graph=*/false,
          /*allow_unused=*/true);
      for (size_t j = 0; j < sums.size(); ++j) {
        if (!found[j].defined()) continue;
        sums[j] = sums[j].defined() ? sums[j] + found[j] : found[j];
      }
    }
    variable_list out(2);  // of the call and the rows
    auto next = sums.begin();
    for (auto weight = saved.begin() + 1; weight != saved.end(); ++weight) {
      out.push_back(weight->requires_grad() ? *next++ : Tensor());
    }
    return out;
  }
};

}  // namespace

Tensor recomputed(const RowFunction& call, const Tensor& rows, const std::vector<Tensor>& weights,
                  int64_t part) {
  TORCH_CHECK_VALUE(part >= 1, "recomputed: part must be at least 1, got ", part);
  // As a list, not a vector, in which autograd looks for no variables.
  return Recomputed::apply(c10::make_intrusive<Call>(call, part, rows.device().type()), rows,
                           at::TensorList(weights));
}

}  // namespace placket
