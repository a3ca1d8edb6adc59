#include "models/layers.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/interrupt.h"
#include "ops/autocast.h"
#include "ops/batch_norm_act.h"

namespace placket {

using at::Tensor;

Weights::Weights(const char* op, at::TensorList tensors, size_t expected) : tensors_(tensors) {
  TORCH_CHECK_VALUE(tensors.size() == expected, op, ": weights must hold ", expected,
                    " tensors in the order of the spec, got ", tensors.size());
}

void add_specs(TensorSpecs& specs, const std::string& prefix, TensorSpecs part) {
  for (TensorSpec& spec : part) {
    spec.name = prefix + spec.name;
    specs.push_back(std::move(spec));
  }
}

void add_conv(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in, int64_t kernel,
              const Conv& conv) {
  const int64_t channels = in / conv.groups;
  TensorSpec weight{name + ".weight", {out, channels, kernel, kernel}};
  if (conv.groups == 1) {
    weight.initializer = Initializer::kKaimingNormal;
  } else {
    // The fan out of one group; torch's own rule would count all of them.
    weight.initializer = Initializer::kNormal;
    const int64_t fan_out = out / conv.groups * kernel * kernel;
    weight.scale = std::sqrt(2.0 / double(fan_out));
  }
  specs.push_back(std::move(weight));
  if (conv.bias) specs.push_back({name + ".bias", {out}});
}

namespace {

// The trainer may stop at a layer, forward and backward.
Tensor with_interruption_point(const Tensor& out) {
  interruption_point();
  if (interruptible() && out.requires_grad()) {
    out.register_hook([](const Tensor&) { interruption_point(); });
  }
  return out;
}

Tensor convolve(const Tensor& x, const Affine& weights, const c10::SymInt& top,
                const c10::SymInt& left, const Conv& conv) {
  // Lists of two, as of every pooling: ONNX's exporter does not repeat an only number.
  const c10::SymInt stride[] = {conv.stride, conv.stride};
  const c10::SymInt padding[] = {top, left};
  const c10::SymInt dilation[] = {1, 1};
  return with_interruption_point(
      at::conv2d_symint(x, weights.weight, weights.bias, stride, padding, dilation, conv.groups));
}

Tensor convolve_same(const Tensor& x, const Affine& weights, const Conv& conv) {
  const int64_t kernel = weights.weight.size(2);
  const auto missing = [&](int64_t dim) {
    const c10::SymInt size = x.sym_size(dim);
    const c10::SymInt outputs = (size + (conv.stride - 1)) / conv.stride;
    return ((outputs - 1) * conv.stride + kernel - size).max(0);
  };
  const c10::SymInt rows = missing(2);
  const c10::SymInt columns = missing(3);
  const c10::SymInt top = rows / 2;
  const c10::SymInt left = columns / 2;
  // Even padding is the convolution's own; only an odd one costs a copy.
  if (rows == top * 2 && columns == left * 2) return convolve(x, weights, top, left, conv);
  const Tensor padded = at::constant_pad_nd_symint(x, {left, columns - left, top, rows - top}, 0);
  return convolve(padded, weights, 0, 0, conv);
}

Tensor conv2d(const Tensor& x, const Affine& weights, const Conv& conv) {
  return conv.same ? convolve_same(x, weights, conv)
                   : convolve(x, weights, conv.padding, conv.padding, conv);
}

}  // namespace

Tensor conv2d(const Tensor& x, Weights& weights, const Conv& conv) {
  return conv2d(x, conv.bias ? weights.next_affine() : Affine{weights.next(), Tensor()}, conv);
}

void add_batch_norm(TensorSpecs& specs, const std::string& name, int64_t channels) {
  specs.push_back({name + ".weight", {channels}, Initializer::kOnes});
  specs.push_back({name + ".bias", {channels}, Initializer::kZeros});
  specs.push_back({name + ".running_mean", {channels}, Initializer::kZeros, 1.0, true});
  specs.push_back({name + ".running_var", {channels}, Initializer::kOnes, 1.0, true});
}

namespace {

Tensor activate(Tensor x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at::relu_(x);
    case Activation::kRelu6:
      return at::relu6_(x);
    case Activation::kNone:
      return x;
  }
  TORCH_INTERNAL_ASSERT(false, "unknown activation");
}

Tensor conv_running_norm(const Tensor& x, const NormedConv& weights, const Conv& conv,
                         const BatchNorm& settings, const Tensor& residual) {
  const Tensor scale = weights.norm.weight * (weights.running_var + settings.eps).rsqrt();
  const Tensor mean =
      weights.bias.defined() ? weights.running_mean - weights.bias : weights.running_mean;
  const Tensor bias = weights.norm.bias - mean * scale;
  Tensor y = conv2d(x, {weights.kernel * scale.view({-1, 1, 1, 1}), bias}, conv);
  return residual.defined() ? y.add_(residual) : y;
}

// Moves the running statistics towards those of each group, [groups, C], in order.
void track(const NormedConv& weights, const Tensor& mean, const Tensor& variance,
           const c10::SymInt& values, double momentum) {
  const at::NoGradGuard no_grad;
  const Tensor unbiased = variance * ((values * 1.0) / (values - 1.0));
  for (int64_t group = 0; group < mean.size(0); ++group) {
    weights.running_mean.lerp_(mean[group].to(weights.running_mean.scalar_type()), momentum);
    weights.running_var.lerp_(unbiased[group].to(weights.running_var.scalar_type()), momentum);
  }
}

}  // namespace

namespace {

// activation(BatchNorm(y) + residual) by statistics of the batch, which the running ones follow.
Tensor batch_statistics_norm(const Tensor& y, const NormedConv& weights, const Mode& mode,
                             Activation activation, const BatchNorm& settings,
                             const Tensor& residual) {
  const c10::SymInt values = y.sym_size(0) * y.sym_size(2) * y.sym_size(3) / mode.groups;
  // One value has no unbiased variance: the running variance would become NaN.
  TORCH_CHECK_VALUE(values > 1,
                    "batch_norm: images must give more than one value for each channel and group "
                    "of the batch, got a map of ",
                    y.sym_sizes(), " in ", mode.groups, " groups");
  const bool relu = activation == Activation::kRelu;
  const auto [output, mean, variance] =
      batch_norm_act(y, residual.defined() ? std::optional<Tensor>(residual) : std::nullopt,
                     weights.norm.weight, weights.norm.bias, mode.groups, settings.eps, relu);
  track(weights, mean, variance, values, settings.momentum);
  return relu ? output : activate(output, activation);
}

}  // namespace

Tensor conv_norm(const Tensor& x, const NormedConv& weights, const Conv& conv, const Mode& mode,
                 Activation activation, const BatchNorm& settings, const Tensor& residual) {
  if (!mode.batch_statistics) {
    return activate(conv_running_norm(x, weights, conv, settings, residual), activation);
  }
  const Tensor y = conv2d(x, {weights.kernel, weights.bias}, conv);
  return batch_statistics_norm(y, weights, mode, activation, settings, residual);
}

Tensor batch_norm_rows(const Tensor& x, const NormedConv& weights, const Mode& mode,
                       const BatchNorm& settings) {
  if (!mode.batch_statistics) {
    const Tensor scale = weights.norm.weight * (weights.running_var + settings.eps).rsqrt();
    return x * scale + (weights.norm.bias - weights.running_mean * scale);
  }
  const Tensor map = x.unsqueeze(2).unsqueeze(3);
  return batch_statistics_norm(map, weights, mode, Activation::kNone, settings, {})
      .squeeze(3)
      .squeeze(2);
}

Tensor conv_instance_norm(const Tensor& x, const Tensor& kernel, const Affine& norm,
                          const Conv& conv) {
  return at::instance_norm(conv2d(x, {kernel, Tensor()}, conv), norm.weight, norm.bias, {}, {},
                           /*use_input_stats=*/true, /*momentum=*/0, /*eps=*/1e-5,
                           /*cudnn_enabled=*/true);
}

void add_linear(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in,
                LinearInit init) {
  if (init == LinearInit::kTorch) {
    specs.push_back({name + ".weight", {out, in}, Initializer::kLinear, double(in)});
    specs.push_back({name + ".bias", {out}, Initializer::kLinear, double(in)});
  } else {
    specs.push_back({name + ".weight", {out, in}, Initializer::kTruncatedNormal, 0.02});
    specs.push_back({name + ".bias", {out}, Initializer::kZeros});
  }
}

Tensor linear(const Tensor& x, const Affine& weights) {
  return with_interruption_point(at::linear(x, weights.weight, weights.bias));
}

void add_layer_norm(TensorSpecs& specs, const std::string& name, int64_t channels) {
  specs.push_back({name + ".weight", {channels}, Initializer::kOnes});
  specs.push_back({name + ".bias", {channels}, Initializer::kZeros});
}

Tensor layer_norm(const Tensor& x, const Affine& weights, double eps) {
  return at::layer_norm(x, weights.weight.sizes(), weights.weight, weights.bias, eps);
}

Tensor map_to_tokens(const Tensor& map) { return map.flatten(2).transpose(1, 2); }

Tensor tokens_to_map(const Tensor& tokens, const c10::SymInt& height, const c10::SymInt& width) {
  return tokens.transpose(1, 2).unflatten_symint(2, {height, width});
}

Tensor positions_for(const Tensor& positions, int64_t side, const c10::SymInt& height,
                     const c10::SymInt& width) {
  if (height == side && width == side) return positions;
  // The filter knows no lower precision on the CPU.
  const Tensor exact = at_least_float32(positions);
  const Tensor grid = tokens_to_map(exact.slice(0, 1).unsqueeze(0), side, side);
  const Tensor resampled = at::_upsample_bicubic2d_aa_symint(grid, {height, width},
                                                             /*align_corners=*/false);
  return at::cat({exact.slice(0, 0, 1), map_to_tokens(resampled).squeeze(0)})
      .to(positions.scalar_type());
}

Tensor split_heads(const Tensor& tokens, int64_t heads) {
  return tokens.unflatten(2, {heads, -1}).transpose(1, 2);
}

Tensor join_heads(const Tensor& heads) { return heads.transpose(1, 2).flatten(2); }

}  // namespace placket
