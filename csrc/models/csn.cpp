#include <ATen/ATen.h>

#include "models/head_model.h"

// Heads without attention: CSN, "Conditional Similarity Networks" (CVPR 2017), as ASEN's published
// code has it, and the triplet network that knows no attribute; both are baselines of ASEN's paper.
// Embeddings are not normalised here: the network's are, and the losses take cosines.
namespace placket {

using at::Tensor;

namespace {

// W mean_P(x) + b, [B, 1, E].
Tensor project_mean(const Tensor& features, const Affine& pooled_proj) {
  return linear(features.mean({2, 3}), pooled_proj).unsqueeze(1);
}

// embedding = relu(M[a]) * (W mean_P(x) + b) with a mask M[a] for each attribute, M [A, E].
class Csn : public HeadModel {
 public:
  explicit Csn(Description& settings)
      : embedding_dim_(settings.integer("embedding_dim", 1024, 1)) {}

  size_t tensors() const override { return 3; }
  int64_t embedding_dim() const override { return embedding_dim_; }
  bool attends() const override { return false; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    TensorSpecs specs;
    add_linear(specs, "pooled_proj", embedding_dim_, sizes.channels);
    specs.push_back({"masks.weight",
                     {sizes.attributes, embedding_dim_},
                     Initializer::kNormal,
                     0.7,
                     /*buffer=*/false,
                     /*mean=*/0.9});
    specs.back().attribute_axis = 0;
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& /*mode*/) const override {
    const Affine pooled_proj = w.next_affine();
    const Tensor masks = at::relu(at::embedding(w.next(), input.attributes));  // [(B,) K, E]
    HeadOutput out;
    out.embedding = project_mean(input.features, pooled_proj) * masks;
    return out;
  }

 private:
  int64_t embedding_dim_;
};

// embedding = W mean_P(x) + b, the same under every attribute.
class Triplet : public HeadModel {
 public:
  explicit Triplet(Description& settings)
      : embedding_dim_(settings.integer("embedding_dim", 1024, 1)) {}

  size_t tensors() const override { return 2; }
  int64_t embedding_dim() const override { return embedding_dim_; }
  bool attends() const override { return false; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    TensorSpecs specs;
    add_linear(specs, "pooled_proj", embedding_dim_, sizes.channels);
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& /*mode*/) const override {
    const Affine pooled_proj = w.next_affine();
    HeadOutput out;
    out.embedding = project_mean(input.features, pooled_proj)
                        .expand_symint({-1, input.attributes.sym_size(-1), -1});
    return out;
  }

 private:
  int64_t embedding_dim_;
};

}  // namespace

std::unique_ptr<HeadModel> make_csn(Description& settings) {
  return std::make_unique<Csn>(settings);
}

std::unique_ptr<HeadModel> make_triplet(Description& settings) {
  return std::make_unique<Triplet>(settings);
}

}  // namespace placket
