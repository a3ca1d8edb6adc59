#include "models/layers.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <cmath>

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
    weight.scale = std::sqrt(2.0 / double(out / conv.groups * kernel * kernel));
  }
  specs.push_back(std::move(weight));
  if (conv.bias) specs.push_back({name + ".bias", {out}});
}

namespace {

Tensor convolve(const Tensor& x, const Affine& weights, const c10::SymInt& top,
                const c10::SymInt& left, const Conv& conv) {
  const c10::SymInt stride = conv.stride;
  const c10::SymInt padding[] = {top, left};
  return at::conv2d_symint(x, weights.weight, weights.bias, stride, c10::SymIntArrayRef(padding),
                           c10::SymInt(1), conv.groups);
}

Affine next_conv(Weights& weights, const Conv& conv) {
  if (conv.bias) return weights.next_affine();
  return {weights.next(), Tensor()};
}

}  // namespace

Tensor conv2d(const Tensor& x, Weights& weights, const Conv& conv) {
  return convolve(x, next_conv(weights, conv), conv.padding, conv.padding, conv);
}

Tensor conv2d_same(const Tensor& x, Weights& weights, const Conv& conv) {
  const Affine affine = next_conv(weights, conv);
  const int64_t kernel = affine.weight.size(2);
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
  if (rows == top * 2 && columns == left * 2) return convolve(x, affine, top, left, conv);
  const Tensor padded = at::constant_pad_nd_symint(x, {left, columns - left, top, rows - top}, 0);
  return convolve(padded, affine, 0, 0, conv);
}

void add_batch_norm(TensorSpecs& specs, const std::string& name, int64_t channels) {
  specs.push_back({name + ".weight", {channels}, Initializer::kOnes});
  specs.push_back({name + ".bias", {channels}, Initializer::kZeros});
  specs.push_back({name + ".running_mean", {channels}, Initializer::kZeros, 1.0, true});
  specs.push_back({name + ".running_var", {channels}, Initializer::kOnes, 1.0, true});
}

Tensor batch_norm(const Tensor& x, Weights& weights, const Mode& mode, const BatchNorm& settings) {
  const auto [weight, bias] = weights.next_affine();
  const Tensor& mean = weights.next();
  const Tensor& variance = weights.next();
  const auto normalize = [&](const Tensor& part) {
    return at::batch_norm(part, weight, bias, mean, variance, mode.batch_statistics,
                          settings.momentum, settings.eps, at::globalContext().userEnabledCuDNN());
  };
  if (!mode.batch_statistics) return normalize(x);
  // One value has no unbiased variance: the running variance would become NaN.
  TORCH_CHECK_VALUE(x.sym_numel() > x.sym_size(1) * mode.groups,
                    "batch_norm: images must give more than one value for each channel and group "
                    "of the batch, got a map of ",
                    x.sym_sizes(), " in ", mode.groups, " groups");
  if (mode.groups == 1) return normalize(x);
  std::vector<Tensor> parts = x.split_symint(x.sym_size(0) / mode.groups);
  for (Tensor& part : parts) part = normalize(part);
  return at::cat(parts);
}

void add_linear(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in,
                LinearInit init) {
  if (init == LinearInit::kTorch) {
    specs.push_back({name + ".weight", {out, in}, Initializer::kLinear});
    specs.push_back({name + ".bias", {out}, Initializer::kLinear, double(in)});
  } else {
    specs.push_back({name + ".weight", {out, in}, Initializer::kTruncatedNormal, 0.02});
    specs.push_back({name + ".bias", {out}, Initializer::kZeros});
  }
}

Tensor linear(const Tensor& x, const Affine& weights) {
  return at::linear(x, weights.weight, weights.bias);
}

void add_layer_norm(TensorSpecs& specs, const std::string& name, int64_t channels) {
  specs.push_back({name + ".weight", {channels}, Initializer::kOnes});
  specs.push_back({name + ".bias", {channels}, Initializer::kZeros});
}

Tensor layer_norm(const Tensor& x, const Affine& weights) {
  return at::layer_norm(x, weights.weight.sizes(), weights.weight, weights.bias, 1e-6);
}

Tensor map_to_tokens(const Tensor& map) { return map.flatten(2).transpose(1, 2); }

Tensor tokens_to_map(const Tensor& tokens, const c10::SymInt& height, const c10::SymInt& width) {
  return tokens.transpose(1, 2).unflatten_symint(2, {height, width});
}

Tensor split_heads(const Tensor& tokens, int64_t heads) {
  return tokens.unflatten(2, {heads, -1}).transpose(1, 2);
}

Tensor join_heads(const Tensor& heads) { return heads.transpose(1, 2).flatten(2); }

}  // namespace placket
