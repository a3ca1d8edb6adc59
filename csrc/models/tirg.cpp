#include <ATen/ATen.h>

#include "models/composition_model.h"

// TIRG, "Composing Text and Image for Image Retrieval - An Empirical Odyssey" (Vo et al., CVPR
// 2019), on pooled features. With both = [image; text] in R^2D,
//
//   gate     = sigmoid( W relu(BatchNorm(both)) ),
//   residual = W2 relu( W1 relu(BatchNorm(both)) ),
//   query    ~ image_scale gate * image + residual_scale residual,
//
// the scales learned, from 1 and 10. Image part: the first term; text part: the second, which the
// text modifies the image by. The authors train with a learned length of the query; here it is 1,
// and the loss has a scale.
namespace placket {

using at::Tensor;

namespace {

// relu(BatchNorm(x)) by the next four tensors.
Tensor normalised(const Tensor& x, Weights& weights, bool training) {
  const Affine norm = weights.next_affine();
  const Tensor& mean = weights.next();
  const Tensor& variance = weights.next();
  const BatchNorm settings;
  return at::relu(at::batch_norm(x, norm.weight, norm.bias, mean, variance, training,
                                 settings.momentum, settings.eps, /*cudnn_enabled=*/true));
}

class Tirg : public CompositionModel {
 public:
  TensorSpecs spec(int64_t dims) const override {
    TensorSpecs specs;
    specs.push_back({"image_scale", {1}, Initializer::kOnes});
    specs.push_back({"residual_scale",
                     {1},
                     Initializer::kNormal,
                     /*scale=*/0.0,
                     /*buffer=*/false,
                     /*mean=*/10.0});
    add_batch_norm(specs, "gate.norm", 2 * dims);
    add_linear(specs, "gate.fc", dims, 2 * dims);
    add_batch_norm(specs, "residual.norm", 2 * dims);
    add_linear(specs, "residual.fc1", 2 * dims, 2 * dims);
    add_linear(specs, "residual.fc2", dims, 2 * dims);
    return specs;
  }
  size_t tensors() const override { return 16; }

  CompositionOutput compose(const CompositionInput& input, Weights& weights,
                            bool training) const override {
    // One row has no variance: the running variance would become NaN.
    TORCH_CHECK_VALUE(!training || input.image.sym_size(0) != 1,
                      "compose: image must have more than one row in training of TIRG, whose "
                      "BatchNorm takes their variance, got 1");
    const Tensor both = at::cat({input.image, input.text}, 1);
    const Tensor& image_scale = weights.next();
    const Tensor& residual_scale = weights.next();
    const Tensor for_gate = normalised(both, weights, training);
    const Tensor gate = linear(for_gate, weights.next_affine()).sigmoid();
    const Tensor for_residual = normalised(both, weights, training);
    const Tensor hidden = linear(for_residual, weights.next_affine()).relu();
    const Tensor residual = linear(hidden, weights.next_affine());
    return query_of(image_scale * gate * input.image, residual_scale * residual);
  }
};

}  // namespace

std::unique_ptr<CompositionModel> make_tirg(Description& /*settings*/) {
  return std::make_unique<Tirg>();
}

}  // namespace placket
