#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "models/tensor_spec.h"
#include "models/trunk.h"

// The layers models are written with. Each layer has two sides that must agree: an `add_...` that
// appends its tensors to a spec list, and a function that takes the same tensors, in the same
// order, from a cursor over the weights.
namespace placket {

// A layer's weight and bias; the bias is undefined where the layer has none.
struct Affine {
  at::Tensor weight;
  at::Tensor bias;
};

// A convolution and the BatchNorm after it.
struct NormedConv {
  at::Tensor kernel;  // [out, in / groups, kernel, kernel]
  Affine norm;        // [out] each
  at::Tensor running_mean;
  at::Tensor running_var;
  at::Tensor bias;  // of the convolution, [out]; undefined where it has none
};

// A cursor over a model's weights, in the order of its spec.
class Weights {
 public:
  // Throws ValueError unless there are exactly `expected` tensors. `op` opens the message.
  Weights(const char* op, at::TensorList tensors, size_t expected);

  const at::Tensor& next() { return tensors_[position_++]; }
  at::TensorList next(size_t count) {
    const at::TensorList part = tensors_.slice(position_, count);
    position_ += count;
    return part;
  }
  Affine next_affine() {
    const at::Tensor& weight = next();
    return {weight, next()};
  }
  // A BatchNorm without the convolution before it.
  NormedConv next_norm() {
    const Affine norm = next_affine();
    const at::Tensor& mean = next();
    return {{}, norm, mean, next(), {}};
  }
  NormedConv next_normed_conv() {
    const at::Tensor& kernel = next();
    NormedConv out = next_norm();
    out.kernel = kernel;
    return out;
  }

 private:
  at::TensorList tensors_;
  size_t position_ = 0;
};

// Appends `part` with `prefix` before every name.
void add_specs(TensorSpecs& specs, const std::string& prefix, TensorSpecs part);

// Convolution: weight [out, in / groups, kernel, kernel] and, if asked for, bias [out].
struct Conv {
  int64_t stride = 1;
  int64_t padding = 0;
  int64_t groups = 1;
  bool bias = false;
  // Instead of `padding`, TensorFlow's "same": ceil(size / stride) outputs, the odd row or column
  // of zeros at the end.
  bool same = false;
};
void add_conv(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in, int64_t kernel,
              const Conv& conv = {});
at::Tensor conv2d(const at::Tensor& x, Weights& weights, const Conv& conv = {});

// BatchNorm: weight, bias, running_mean, running_var, all [channels].
struct BatchNorm {
  double eps = 1e-5;
  double momentum = 0.1;
};
void add_batch_norm(TensorSpecs& specs, const std::string& name, int64_t channels);

enum class Activation { kNone, kRelu, kRelu6 };

// activation(BatchNorm(conv(x)) + residual); an undefined residual is none. With statistics of the
// batch and mode.groups > 1 the batch is cut into that many equal parts, each normalised by its
// own; the running statistics move once for each part, in order, exactly as separate forward passes
// would. With running statistics BatchNorm is folded into the kernel, which saves a pass over the
// map forward and two backward.
at::Tensor conv_norm(const at::Tensor& x, const NormedConv& weights, const Conv& conv,
                     const Mode& mode, Activation activation, const BatchNorm& settings = {},
                     const at::Tensor& residual = {});

// BatchNorm(x) of rows [B, C], with the same meaning of `mode`; running statistics move.
at::Tensor batch_norm_rows(const at::Tensor& x, const NormedConv& weights, const Mode& mode,
                           const BatchNorm& settings = {});

// InstanceNorm(conv(x)): each channel of each image by its own mean and variance.
at::Tensor conv_instance_norm(const at::Tensor& x, const at::Tensor& kernel, const Affine& norm,
                              const Conv& conv);

// Linear: weight [out, in], bias [out].
enum class LinearInit {
  kTorch,           // as torch.nn.Linear
  kTruncatedNormal  // N(0, 0.02^2) and a bias of zero, as ViT
};
void add_linear(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in,
                LinearInit init = LinearInit::kTorch);
at::Tensor linear(const at::Tensor& x, const Affine& weights);

// LayerNorm over the last dimension: weight and bias [channels].
void add_layer_norm(TensorSpecs& specs, const std::string& name, int64_t channels);
at::Tensor layer_norm(const at::Tensor& x, const Affine& weights, double eps = 1e-6);

// [B, C, h, w] to [B, h w, C] and back; views, where the layout allows.
at::Tensor map_to_tokens(const at::Tensor& map);
at::Tensor tokens_to_map(const at::Tensor& tokens, const c10::SymInt& height,
                         const c10::SymInt& width);

// Learned positions [1 + side^2, C], of one token and of a grid, for a grid h x w: resampled
// (bicubic, antialiased) where that is another.
at::Tensor positions_for(const at::Tensor& positions, int64_t side, const c10::SymInt& height,
                         const c10::SymInt& width);

// [B, N, C] to [B, heads, N, C / heads] and back.
at::Tensor split_heads(const at::Tensor& tokens, int64_t heads);
at::Tensor join_heads(const at::Tensor& heads);

}  // namespace placket
