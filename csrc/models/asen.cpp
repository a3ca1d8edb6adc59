#include <ATen/ATen.h>

#include <cmath>

#include "models/head_model.h"
#include "ops/attention_pool.h"

// ASEN, "Fine-Grained Fashion Similarity Learning by Attribute-Specific Embedding Network" (AAAI
// 2020), in the two versions of its published code, and ASEN++, "Fine-Grained Fashion Similarity
// Prediction by Attribute-Specific Embedding Learning" (IEEE TIP 2021). In all of them an attribute
// a chooses positions of the map x (C channels) and then channels:
//
//   attention = softmax_P(logits(x, a)),  u = sum_P attention x,
//   g = sigmoid(fc2 relu(fc1 [u; r(a)])),  v = g * u
//
// Embeddings leave the head without the final L2 norm of the published code: the network normalises
// what it calls embedding, and the losses take cosines.
namespace placket {

using at::Tensor;

namespace {

struct Pooled {
  Tensor features;   // u [B, K, C]
  Tensor attention;  // [B, K, h, w]
};

Pooled pool(const Tensor& logits, const Tensor& features) {
  // Of one dtype under autocast, lest the map be widened; the softmax is in float32 anyway.
  const auto [pooled, rest, attention] =
      attention_pool(logits.to(features.scalar_type()), features.flatten(2), /*background=*/false);
  return {pooled, attention.unflatten_symint(2, {features.sym_size(2), features.sym_size(3)})};
}

// sum_D queries keys / sqrt(D): queries [(B,) K, D], keys [B, D, P] to [B, K, P].
Tensor scaled_logits(const Tensor& queries, const Tensor& keys, int64_t width) {
  return queries.matmul(keys) / std::sqrt(double(width));
}

// g * u with r(a) of `attribute` [(B,) K, R].
Tensor gate(const Tensor& pooled, const Tensor& attribute, const Affine& fc1, const Affine& fc2) {
  const Tensor each = attribute.expand_symint({pooled.sym_size(0), pooled.sym_size(1), -1});
  const Tensor hidden = at::relu(linear(at::cat({pooled, each}, 2), fc1));
  return pooled * linear(hidden, fc2).sigmoid();
}

// The first version (D = attribute_dim). S [A, D] and R [A, C] are its two linear layers of the
// one-hot attribute, which have no bias and hence are tables:
//   logits = tanh(w . (tanh(S[a]) * tanh(conv1x1 x)) + b), hence in [-1, 1]: no position can weigh
//   more than e^2 times another; r(a) = relu(R[a]); embedding = W v
class Asen : public HeadModel {
 public:
  explicit Asen(Description& settings)
      : attribute_dim_(settings.integer("attribute_dim", 512, 1)),
        embedding_dim_(settings.integer("embedding_dim", 1024, 1)),
        hidden_dim_(settings.integer("hidden_dim", 512, 1)) {}

  size_t tensors() const override { return 12; }
  int64_t embedding_dim() const override { return embedding_dim_; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    const double one_hot = double(sizes.attributes);
    TensorSpecs specs;
    add_linear(specs, "image_proj", attribute_dim_, sizes.channels);
    specs.push_back({"attention_table.weight",
                     {sizes.attributes, attribute_dim_},
                     Initializer::kLinear,
                     one_hot});
    specs.back().attribute_axis = 0;
    add_linear(specs, "attention_proj", 1, attribute_dim_);
    specs.push_back(
        {"gate_table.weight", {sizes.attributes, sizes.channels}, Initializer::kLinear, one_hot});
    specs.back().attribute_axis = 0;
    add_linear(specs, "gate.fc1", hidden_dim_, 2 * sizes.channels);
    add_linear(specs, "gate.fc2", sizes.channels, hidden_dim_);
    add_linear(specs, "pooled_proj", embedding_dim_, sizes.channels);
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& /*mode*/) const override {
    const Affine image_proj = w.next_affine();
    const Tensor& attention_table = w.next();
    const Affine attention_proj = w.next_affine();
    const Tensor& gate_table = w.next();
    const Affine fc1 = w.next_affine();
    const Affine fc2 = w.next_affine();
    const Affine pooled_proj = w.next_affine();

    const Tensor keys = linear(map_to_tokens(input.features), image_proj).tanh();  // [B, P, D]
    // The weights of the last 1 x 1 convolution, [1, D], go with the few queries.
    const Tensor queries =
        at::embedding(attention_table, input.attributes).tanh() * attention_proj.weight;
    const Tensor logits = (queries.matmul(keys.transpose(1, 2)) + attention_proj.bias).tanh();
    const auto [pooled, attention] = pool(logits, input.features);
    const Tensor attribute = at::relu(at::embedding(gate_table, input.attributes));
    HeadOutput out;
    out.embedding = linear(gate(pooled, attribute, fc1, fc2), pooled_proj);
    out.attention = attention;
    return out;
  }

 private:
  int64_t attribute_dim_, embedding_dim_, hidden_dim_;
};

// The second version (D = attribute_dim, E [A, D] the attribute table):
//   logits = sum_D tanh(W1 E[a]) tanh(BatchNorm(conv1x1 x)) / sqrt(D);  r(a) = relu(W2 E[a]);
//   embedding = v
class AsenV2 : public HeadModel {
 public:
  explicit AsenV2(Description& settings)
      : attribute_dim_(settings.integer("attribute_dim", 512, 1)),
        embedding_dim_(settings.integer("embedding_dim", 1024, 1)),
        hidden_dim_(settings.integer("hidden_dim", 512, 1)) {}

  size_t tensors() const override { return 14; }
  int64_t embedding_dim() const override { return embedding_dim_; }
  int64_t table_dim() const override { return attribute_dim_; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    TORCH_CHECK_VALUE(embedding_dim_ == sizes.channels, "asen_v2: embedding_dim must be the ",
                      sizes.channels, " channels of the map, got ", embedding_dim_);
    const double fan_in = double(sizes.channels);
    TensorSpecs specs;
    specs.push_back({"image_proj.weight",
                     {attribute_dim_, sizes.channels, 1, 1},
                     Initializer::kLinear,
                     fan_in});
    specs.push_back({"image_proj.bias", {attribute_dim_}, Initializer::kLinear, fan_in});
    add_batch_norm(specs, "image_norm", attribute_dim_);
    add_linear(specs, "attribute_proj", attribute_dim_, attribute_dim_);
    add_linear(specs, "gate_proj", attribute_dim_, attribute_dim_);
    add_linear(specs, "gate.fc1", hidden_dim_, sizes.channels + attribute_dim_);
    add_linear(specs, "gate.fc2", sizes.channels, hidden_dim_);
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& mode) const override {
    const Affine image_proj = w.next_affine();
    const Affine norm = w.next_affine();
    const Tensor& running_mean = w.next();
    const Tensor& running_var = w.next();
    const Affine attribute_proj = w.next_affine();
    const Affine gate_proj = w.next_affine();
    const Affine fc1 = w.next_affine();
    const Affine fc2 = w.next_affine();

    const NormedConv image_conv{image_proj.weight, norm, running_mean, running_var,
                                image_proj.bias};
    const Tensor keys =
        conv_norm(input.features, image_conv, {}, mode, Activation::kNone).tanh().flatten(2);
    const Tensor embedded = at::embedding(input.table, input.attributes);  // [(B,) K, D]
    const Tensor logits =
        scaled_logits(linear(embedded, attribute_proj).tanh(), keys, attribute_dim_);
    const auto [pooled, attention] = pool(logits, input.features);
    HeadOutput out;
    out.embedding = gate(pooled, at::relu(linear(embedded, gate_proj)), fc1, fc2);
    out.attention = attention;
    return out;
  }

 private:
  int64_t attribute_dim_, embedding_dim_, hidden_dim_;
};

// Both branches of ASEN++, each with its own sizes (D = attention_dim, E [A, attribute_dim] the
// attribute table):
//   logits = sum_D tanh(W1 E[a]) tanh(conv1x1 x) / sqrt(D);  r(a) = relu(W2 E[a]);
//   embedding = W v
class AsenPlusPlus : public HeadModel {
 public:
  explicit AsenPlusPlus(Description& settings)
      : attribute_dim_(settings.integer("attribute_dim", 512, 1)),
        attention_dim_(settings.integer("attention_dim", 512, 1)),
        embedding_dim_(settings.integer("embedding_dim", 1024, 1)),
        hidden_dim_(settings.integer("hidden_dim", 512, 1)) {}

  size_t tensors() const override { return 12; }
  int64_t embedding_dim() const override { return embedding_dim_; }
  int64_t table_dim() const override { return attribute_dim_; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    TensorSpecs specs;
    add_linear(specs, "image_proj", attention_dim_, sizes.channels);
    add_linear(specs, "attribute_proj", attention_dim_, attribute_dim_);
    add_linear(specs, "gate_proj", attribute_dim_, attribute_dim_);
    add_linear(specs, "gate.fc1", hidden_dim_, sizes.channels + attribute_dim_);
    add_linear(specs, "gate.fc2", sizes.channels, hidden_dim_);
    add_linear(specs, "pooled_proj", embedding_dim_, sizes.channels);
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& /*mode*/) const override {
    const Affine image_proj = w.next_affine();
    const Affine attribute_proj = w.next_affine();
    const Affine gate_proj = w.next_affine();
    const Affine fc1 = w.next_affine();
    const Affine fc2 = w.next_affine();
    const Affine pooled_proj = w.next_affine();

    const Tensor keys = linear(map_to_tokens(input.features), image_proj).tanh();  // [B, P, D]
    const Tensor embedded = at::embedding(input.table, input.attributes);          // [(B,) K, ...]
    const Tensor queries = linear(embedded, attribute_proj).tanh();
    const Tensor logits = scaled_logits(queries, keys.transpose(1, 2), attention_dim_);
    const auto [pooled, attention] = pool(logits, input.features);
    const Tensor gated = gate(pooled, at::relu(linear(embedded, gate_proj)), fc1, fc2);
    HeadOutput out;
    out.embedding = linear(gated, pooled_proj);
    out.attention = attention;
    return out;
  }

 private:
  int64_t attribute_dim_, attention_dim_, embedding_dim_, hidden_dim_;
};

}  // namespace

std::unique_ptr<HeadModel> make_asen(Description& settings) {
  return std::make_unique<Asen>(settings);
}

std::unique_ptr<HeadModel> make_asen_v2(Description& settings) {
  return std::make_unique<AsenV2>(settings);
}

std::unique_ptr<HeadModel> make_asen_plus_plus(Description& settings) {
  return std::make_unique<AsenPlusPlus>(settings);
}

}  // namespace placket
