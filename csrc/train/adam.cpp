#include "train/adam.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace placket {

using at::Tensor;

Adam::Adam(std::vector<AdamGroup> groups, const AdamConfig& config)
    : groups_(std::move(groups)), config_(config) {
  for (const AdamGroup& group : groups_) {
    Moments moments;
    for (const auto& [name, parameter] : group.parameters) {
      moments.exp_avgs.push_back(at::zeros_like(parameter.detach()));
      moments.exp_avg_sqs.push_back(at::zeros_like(parameter.detach()));
      moments.steps.push_back(at::zeros({}, parameter.options().dtype(at::kFloat)));
    }
    moments_.push_back(std::move(moments));
  }
}

void Adam::step(double factor, const std::optional<Tensor>& found_inf) {
  const at::NoGradGuard no_grad;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const AdamGroup& group = groups_[g];
    std::vector<Tensor> parameters, grads, exp_avgs, exp_avg_sqs, steps;
    for (size_t i = 0; i < group.parameters.size(); ++i) {
      const Tensor& parameter = group.parameters[i].second;
      if (!parameter.grad().defined()) continue;
      parameters.push_back(parameter);
      grads.push_back(parameter.grad());
      exp_avgs.push_back(moments_[g].exp_avgs[i]);
      exp_avg_sqs.push_back(moments_[g].exp_avg_sqs[i]);
      steps.push_back(moments_[g].steps[i]);
    }
    if (parameters.empty()) continue;
    at::_foreach_add_(steps, 1);
    if (config_.decoupled) {
      at::_fused_adamw_(parameters, grads, exp_avgs, exp_avg_sqs, {}, steps, group.rate * factor,
                        config_.beta1, config_.beta2, config_.weight_decay, config_.eps,
                        /*amsgrad=*/false, /*maximize=*/false, std::nullopt, found_inf);
    } else {
      at::_fused_adam_(parameters, grads, exp_avgs, exp_avg_sqs, {}, steps, group.rate * factor,
                       config_.beta1, config_.beta2, config_.weight_decay, config_.eps,
                       /*amsgrad=*/false, /*maximize=*/false, std::nullopt, found_inf);
    }
    // An update that was left out does not count.
    if (found_inf) at::_foreach_sub_(steps, std::vector<Tensor>(steps.size(), *found_inf));
  }
}

void Adam::zero_grad() {
  for (const AdamGroup& group : groups_) {
    for (const auto& [name, parameter] : group.parameters) parameter.mutable_grad().reset();
  }
}

std::vector<Tensor> Adam::parameters() const {
  std::vector<Tensor> all;
  for (const AdamGroup& group : groups_) {
    for (const auto& [name, parameter] : group.parameters) all.push_back(parameter);
  }
  return all;
}

NamedTensors Adam::state() const {
  NamedTensors state;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const NamedTensors& parameters = groups_[g].parameters;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const std::string& name = parameters[i].first;
      state.emplace_back("exp_avg." + name, moments_[g].exp_avgs[i]);
      state.emplace_back("exp_avg_sq." + name, moments_[g].exp_avg_sqs[i]);
      state.emplace_back("step." + name, moments_[g].steps[i]);
    }
  }
  return state;
}

}  // namespace placket
