#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "models/head_model.h"
#include "ops/attention_pool.h"
#include "ops/autocast.h"

// A reconstruction of M3-Net (CVPR 2023), of which only losses, block diagram and results are
// public: attribute representations as ASEN++ makes them, class representations by attention that
// starts from the attribute's. Every width and where the two parts meet are ours.
namespace placket {

using at::Tensor;

namespace {

// [..., F] at unit length; a zero row stays zero.
Tensor unit(const Tensor& rows) {
  const Tensor x = at_least_float32(rows);
  return x / x.norm(2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

// Head (C channels, D = attribute_dim, Q = class_query_dim, E = embedding_dim, F = class_dim). With
// n the attribute of class m, keys k_p = tanh(conv1x1 X)_p and l_p = tanh(conv1x1' X)_p:
//
//   a_np  = tanh(W_a t_n) k_p / sqrt(D),  alpha_n = softmax_P(a_n),  u_n = sum alpha_np X_p
//   g_n   = sigmoid(fc2 relu(fc1 [u_n ; relu(W_g t_n)]))
//   psi_n = W_psi (g_n u_n)                                            attribute n [E]
//   b_mp  = (W_q [e_m ; psi_n] l_p) / sqrt(D) + a_np,  alpha_m = softmax_P(b_m)
//   phi_m = W_phi sum alpha_mp X_p                                     class m [F]
//   logit_m = w_m phi_m + b_m,  x = softmax of the logits of n's classes
//   embedding of n = [psi_n / |psi_n| ; W_o sum_m x_m phi_m / |phi_m|]
//
// alpha_n as a prior adds log alpha_np to b_mp; a_np differs from it by the same number at all
// positions, which the softmax of m does not see. Variant "attribute" has no class attention:
// alpha_m = alpha_n. Variant "class" has no attribute sub-network: no psi, no a, and as attribute
// n's attention sum_m x_m alpha_m.
class M3Net : public HeadModel {
 public:
  explicit M3Net(Description& settings)
      : attribute_dim_(settings.integer("attribute_dim", 512, 1)),
        embedding_dim_(settings.integer("embedding_dim", 512, 1)),
        class_dim_(settings.integer("class_dim", 128, 1)),
        class_query_dim_(settings.integer("class_query_dim", 512, 1)),
        class_output_dim_(settings.integer("class_output_dim", 128, 1)),
        classes_(settings.integers("classes", 1)),
        total_(std::accumulate(classes_.begin(), classes_.end(), int64_t{0})) {
    const std::string variant = settings.choice("variant", "full", {"full", "attribute", "class"});
    attends_by_attribute_ = variant != "class";
    attends_by_class_ = variant != "attribute";
  }

  size_t tensors() const override {
    return 5 + (attends_by_attribute_ ? 12 : 0) + (attends_by_class_ ? 5 : 0);
  }
  int64_t embedding_dim() const override {
    return (attends_by_attribute_ ? embedding_dim_ : 0) + class_output_dim_;
  }
  int64_t table_dim() const override { return attends_by_attribute_ ? attribute_dim_ : 0; }
  std::vector<int64_t> classes() const override { return classes_; }
  int64_t centre_dim() const override { return class_dim_; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    TORCH_CHECK_VALUE(int64_t(classes_.size()) == sizes.attributes,
                      "m3net: classes must have one number for each of the ", sizes.attributes,
                      " attributes, got ", classes_.size());
    const int64_t channels = sizes.channels, gate = std::max<int64_t>(1, channels / 2);
    TensorSpecs specs;
    if (attends_by_attribute_) {
      add_linear(specs, "image_proj", attribute_dim_, channels);
      add_linear(specs, "attribute_proj", attribute_dim_, attribute_dim_);
      add_linear(specs, "gate.attribute_proj", attribute_dim_, attribute_dim_);
      add_linear(specs, "gate.fc1", gate, channels + attribute_dim_);
      add_linear(specs, "gate.fc2", channels, gate);
      add_linear(specs, "pooled_proj", embedding_dim_, channels);
    }
    if (attends_by_class_) {
      specs.push_back({"class_embedding.weight", {total_, class_query_dim_}, Initializer::kNormal});
      add_linear(specs, "class_image_proj", attribute_dim_, channels);
      add_linear(specs, "class_query", attribute_dim_,
                 class_query_dim_ + (attends_by_attribute_ ? embedding_dim_ : 0));
    }
    add_linear(specs, "class_proj", class_dim_, channels);
    add_linear(specs, "classifier", total_, class_dim_);
    specs.push_back({"class_output.weight",
                     {class_output_dim_, class_dim_},
                     Initializer::kLinear,
                     double(class_dim_)});
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode&) const override {
    const Tensor tokens = map_to_tokens(input.features);  // [B, P, C]
    const double scale = 1 / std::sqrt(double(attribute_dim_));
    Tensor attribute_logits, attribute_attention, pooled, psi;
    if (attends_by_attribute_) {
      const Affine image_proj = w.next_affine();
      const Affine attribute_proj = w.next_affine();
      const Affine gate_attribute_proj = w.next_affine();
      const Affine fc1 = w.next_affine();
      const Affine fc2 = w.next_affine();
      const Affine pooled_proj = w.next_affine();
      TORCH_CHECK_VALUE(input.table.size(0) == int64_t(classes_.size()),
                        "m3net: table must have one row for each of the ", classes_.size(),
                        " attributes of classes, got ", input.table.size(0));
      const Tensor keys = linear(tokens, image_proj).tanh();  // [B, P, D]
      const Tensor queries = linear(input.table, attribute_proj).tanh() * scale;
      attribute_logits = queries.matmul(keys.transpose(1, 2));  // [B, A, P]
      std::tie(pooled, std::ignore, attribute_attention) =
          attention_pool(attribute_logits, tokens.transpose(1, 2), /*background=*/false);
      const int64_t channels = fc2.bias.size(0);
      const Tensor of_attribute =
          at::relu(linear(input.table, gate_attribute_proj))
              .matmul(fc1.weight.narrow(1, channels, attribute_dim_).t());  // [A, C / 2]
      const Tensor hidden =
          at::relu(linear(pooled, {fc1.weight.narrow(1, 0, channels), fc1.bias}) + of_attribute);
      psi = linear(linear(hidden, fc2).sigmoid() * pooled, pooled_proj);  // [B, A, E]
    }

    Tensor logits;  // [B, M, P]
    if (attends_by_class_) {
      const Tensor& embedding = w.next();
      const Affine image_proj = w.next_affine();
      const Affine query = w.next_affine();
      const Tensor keys = linear(tokens, image_proj).tanh();  // [B, P, D]
      // The class's half of the query is the same for every image and the attribute's half the
      // same for all its classes, so that M queries for each of B images are never made.
      const Tensor queries =
          linear(embedding, {query.weight.narrow(1, 0, class_query_dim_), query.bias}) * scale;
      logits = queries.matmul(keys.flatten(0, 1).t())
                   .unflatten_symint(1, {keys.sym_size(0), keys.sym_size(1)})
                   .transpose(0, 1);
      if (attends_by_attribute_) {
        const Tensor refined =
            psi.matmul(query.weight.narrow(1, class_query_dim_, embedding_dim_).t() * scale);
        logits = of_classes(attribute_logits + refined.matmul(keys.transpose(1, 2))) + logits;
      }
    }

    const Affine class_proj = w.next_affine();
    const Affine classifier = w.next_affine();
    const Tensor& output = w.next();
    HeadOutput out;
    Tensor class_attention;
    if (attends_by_class_) {
      // Attention weights add up to 1, so that projecting and pooling commute.
      const Tensor values = linear(tokens, class_proj).transpose(1, 2);  // [B, F, P]
      std::tie(out.class_embedding, std::ignore, class_attention) =
          attention_pool(logits, values, /*background=*/false);
    } else {
      out.class_embedding = of_classes(linear(pooled, class_proj));
    }
    out.class_logits = (out.class_embedding * classifier.weight).sum(2) + classifier.bias;

    const Tensor& wanted = input.attributes;  // [K] or [B, K]
    const Tensor owners =
        of_classes(at::arange(int64_t(classes_.size()), wanted.options()).view({1, -1, 1}))
            .flatten();
    const Tensor share = at_least_float32(out.class_logits)
                             .unsqueeze(1)
                             .masked_fill(wanted.unsqueeze(-1).ne(owners),
                                          -std::numeric_limits<double>::infinity())
                             .softmax(-1);  // [B, K, M]
    const Tensor mixed = share.matmul(unit(out.class_embedding)).matmul(output.t());
    Tensor attention;
    if (attends_by_attribute_) {
      out.embedding = at::cat({unit(select(psi, wanted)), mixed}, 2);
      attention = select(attribute_attention, wanted);
    } else {
      out.embedding = mixed;
      attention = share.matmul(class_attention.to(share.scalar_type()));
    }
    out.attention =
        attention.unflatten_symint(2, {input.features.sym_size(2), input.features.sym_size(3)});
    return out;
  }

 private:
  // [B, A, ...] to [B, M, ...]: each class gets its attribute's row. Unlike an index, its backward
  // pass adds up in a fixed order on every device.
  Tensor of_classes(const Tensor& rows) const {
    std::vector<Tensor> parts;
    for (size_t n = 0; n < classes_.size(); ++n) {
      parts.push_back(rows.narrow(1, int64_t(n), 1).expand({-1, classes_[n], -1}));
    }
    return at::cat(parts, 1);
  }

  // [B, A, ...] to [B, K, ...].
  static Tensor select(const Tensor& rows, const Tensor& wanted) {
    if (wanted.dim() == 1) return rows.index_select(1, wanted);
    return rows.gather(1, wanted.unsqueeze(2).expand_symint({-1, -1, rows.sym_size(2)}));
  }

  int64_t attribute_dim_, embedding_dim_, class_dim_, class_query_dim_, class_output_dim_;
  std::vector<int64_t> classes_;  // [A]
  int64_t total_;                 // M
  bool attends_by_attribute_ = true, attends_by_class_ = true;
};

}  // namespace

std::unique_ptr<HeadModel> make_m3net(Description& settings) {
  return std::make_unique<M3Net>(settings);
}

}  // namespace placket
