#include <ATen/ATen.h>

#include "models/composition_model.h"

// The Combiner of CLIP4Cir, "Effective conditioned and composed image retrieval combining
// CLIP-based features" (Baldrati et al., CVPR 2022). With drop after every relu and
// both = [relu(P_t text); relu(P_i image)],
//
//   l     = sigmoid( w2 relu( W1 both ) ),
//   v     = U2 relu( U1 both ),
//   query ~ l text + (1 - l) image + v.
//
// Image part: (1 - l) image; text part: l text. What v adds is made of both and counts to neither.
namespace placket {

using at::Tensor;

namespace {

class Combiner : public CompositionModel {
 public:
  explicit Combiner(Description& settings)
      : projection_(settings.integer("projection", 0, 0)),
        hidden_(settings.integer("hidden", 0, 0)),
        dropout_(settings.number("dropout", 0.5, 0, 1)) {}

  TensorSpecs spec(int64_t dims) const override {
    const int64_t projection = projection_ > 0 ? projection_ : 4 * dims;
    const int64_t hidden = hidden_ > 0 ? hidden_ : 2 * projection;
    TensorSpecs specs;
    add_linear(specs, "text_projection", projection, dims);
    add_linear(specs, "image_projection", projection, dims);
    add_linear(specs, "combiner.fc1", hidden, 2 * projection);
    add_linear(specs, "combiner.fc2", dims, hidden);
    add_linear(specs, "scalar.fc1", hidden, 2 * projection);
    add_linear(specs, "scalar.fc2", 1, hidden);
    return specs;
  }
  size_t tensors() const override { return 12; }

  CompositionOutput compose(const CompositionInput& input, Weights& weights,
                            bool training) const override {
    const auto layer = [&](const Tensor& x, const Affine& fc) {
      return at::dropout(linear(x, fc).relu(), dropout_, training);
    };
    const Tensor text = layer(input.text, weights.next_affine());
    const Tensor image = layer(input.image, weights.next_affine());
    const Tensor both = at::cat({text, image}, 1);
    const Tensor combined = layer(both, weights.next_affine());
    const Tensor joint = linear(combined, weights.next_affine());
    const Tensor mixed = layer(both, weights.next_affine());
    const Tensor selection = linear(mixed, weights.next_affine()).sigmoid();  // [N, 1]
    return query_of(at::rsub(selection, 1) * input.image, selection * input.text, joint);
  }

 private:
  int64_t projection_, hidden_;
  double dropout_;
};

}  // namespace

std::unique_ptr<CompositionModel> make_combiner(Description& settings) {
  return std::make_unique<Combiner>(settings);
}

}  // namespace placket
