#include <ATen/ATen.h>

#include <cmath>

#include "models/head_model.h"
#include "ops/attention_pool.h"

// RPF, "From Region to Patch: Attribute-Aware Foreground-Background Contrastive Learning for
// Fine-Grained Fashion Retrieval" (SIGIR 2023): the heads of its two branches.
namespace placket {

using at::Tensor;

namespace {

// x + fc2(fc1(x)) without the norms around it; dropout after each layer.
Tensor residual_mlp(const Tensor& x, const Tensor& normalized, const Affine& fc1, const Affine& fc2,
                    bool gelu, double dropout, bool training) {
  const Tensor hidden = linear(normalized, fc1);
  const Tensor active = at::dropout(gelu ? at::gelu(hidden) : at::relu(hidden), dropout, training);
  return x + at::dropout(linear(active, fc2), dropout, training);
}

// x [B, K, C] to [B, K, E]: by the one weight [E, C] of all attributes, or by the attribute's own
// of [A, E, C].
Tensor project(const Tensor& x, const Affine& weights, const Tensor& attributes) {
  if (weights.weight.dim() == 2) return linear(x, weights);
  if (attributes.dim() == 1) {
    const Tensor weight = weights.weight.index_select(0, attributes);
    const Tensor bias = weights.bias.index_select(0, attributes);
    return at::baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2))
        .transpose(0, 1);
  }
  // All A and then the wanted one: B K copies of a weight cost far more memory traffic than the
  // other products cost arithmetic.
  const int64_t width = weights.weight.size(1);
  const Tensor all = linear(x, {weights.weight.flatten(0, 1), weights.bias.flatten()});
  const Tensor wanted = attributes.unsqueeze(2).unsqueeze(3).expand({-1, -1, -1, width});
  return all.unflatten(2, {-1, width}).gather(2, wanted).squeeze(2);
}

// Region-aware head (C channels, D = attribute_dim):
//   x = LayerNorm(features), e = LayerNorm(E[a]),
//   attention = softmax_P( sum_D tanh(W e) tanh(conv1x1 x) / sqrt(D) )
//   u = sum attention x, v = sum (1 - attention) x / (P - 1)
//   region = LN(u' + MLP(LN(u'))) with u' = W u; background = LN(v' + MLP(LN(v'))), v' = v (or W v)
class RpfRegion : public HeadModel {
 public:
  explicit RpfRegion(Description& settings)
      : attribute_dim_(settings.integer("attribute_dim", 512, 1)),
        embedding_dim_(settings.integer("embedding_dim", 1024, 1)),
        hidden_dim_(settings.integer("hidden_dim", 512, 1)),
        dropout_(settings.number("dropout", 0.1, 0, 1)),
        // The published code leaves the background unprojected.
        project_background_(settings.boolean("project_background", false)),
        // Not in the paper. The published head has one projection W of the pooled feature for all
        // attributes, so that the directions which tell one attribute's values apart also move the
        // cosines of the others; with a W for each attribute it can drop them.
        project_per_attribute_(settings.boolean("project_per_attribute", false)) {}

  size_t tensors() const override { return 16; }
  int64_t embedding_dim() const override { return embedding_dim_; }
  int64_t table_dim() const override { return attribute_dim_; }
  bool has_background() const override { return true; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    TORCH_CHECK_VALUE(project_background_ || embedding_dim_ == sizes.channels,
                      "rpf_region: embedding_dim must be the ", sizes.channels,
                      " channels of the map unless project_background is true, got ",
                      embedding_dim_);
    TensorSpecs specs;
    add_layer_norm(specs, "image_norm", sizes.channels);
    add_layer_norm(specs, "attribute_norm", attribute_dim_);
    add_linear(specs, "image_proj", attribute_dim_, sizes.channels);
    add_linear(specs, "attribute_proj", attribute_dim_, attribute_dim_);
    if (project_per_attribute_) {
      const double fan_in = double(sizes.channels);
      specs.push_back({"pooled_proj.weight",
                       {sizes.attributes, embedding_dim_, sizes.channels},
                       Initializer::kLinear,
                       fan_in});
      specs.push_back(
          {"pooled_proj.bias", {sizes.attributes, embedding_dim_}, Initializer::kLinear, fan_in});
      for (size_t i = specs.size() - 2; i < specs.size(); ++i) specs[i].attribute_axis = 0;
    } else {
      add_linear(specs, "pooled_proj", embedding_dim_, sizes.channels);
    }
    add_layer_norm(specs, "norm", embedding_dim_);
    add_linear(specs, "mlp.fc1", hidden_dim_, embedding_dim_);
    add_linear(specs, "mlp.fc2", embedding_dim_, hidden_dim_);
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& mode) const override {
    const auto& [features, table, attributes, wants_background] = input;
    const Affine image_norm = w.next_affine();
    const Affine attribute_norm = w.next_affine();
    const Affine image_proj = w.next_affine();
    const Affine attribute_proj = w.next_affine();
    const Affine pooled_proj = w.next_affine();
    const Affine norm = w.next_affine();
    const Affine fc1 = w.next_affine();
    const Affine fc2 = w.next_affine();
    TORCH_CHECK_VALUE(!project_per_attribute_ || pooled_proj.weight.size(0) == table.size(0),
                      "rpf_region: pooled_proj.weight must have one projection for each of the ",
                      table.size(0), " attributes, got ", pooled_proj.weight.sizes());

    const Tensor tokens = layer_norm(map_to_tokens(features), image_norm);  // [B, P, C]
    const Tensor embedded = at::embedding(table, attributes);               // [(B,) K, D]
    const Tensor queries = linear(layer_norm(embedded, attribute_norm), attribute_proj).tanh();
    const Tensor keys = linear(tokens, image_proj).tanh();  // [B, P, D]
    const double scale = 1 / std::sqrt(double(attribute_dim_));
    const Tensor logits = queries.matmul(keys.transpose(1, 2)) * scale;  // [B, K, P]
    // Attention weights add up to 1, so that projecting and pooling commute; with more attributes
    // than positions it is cheaper to project the positions.
    const bool project_positions =
        !wants_background && !project_per_attribute_ &&
        attributes.sym_size(-1) > features.sym_size(2) * features.sym_size(3);
    const Tensor values = project_positions ? linear(tokens, pooled_proj) : tokens;
    const auto [pooled, rest, attention] =
        attention_pool(logits, values.transpose(1, 2), wants_background);

    // One LayerNorm before and after the MLP, as in the published code.
    const auto finish = [&](const Tensor& x) {
      return layer_norm(
          residual_mlp(x, layer_norm(x, norm), fc1, fc2, /*gelu=*/false, dropout_, mode.training),
          norm);
    };
    HeadOutput out;
    out.embedding = finish(project_positions ? pooled : project(pooled, pooled_proj, attributes));
    if (wants_background) {
      out.background = finish(project_background_ ? project(rest, pooled_proj, attributes) : rest);
    }
    out.attention = attention.unflatten_symint(2, {features.sym_size(2), features.sym_size(3)});
    return out;
  }

 private:
  int64_t attribute_dim_, embedding_dim_, hidden_dim_;
  double dropout_;
  bool project_background_, project_per_attribute_;
};

// Patch-aware head: one query of the attribute over the tokens of its crop.
class RpfPatch : public HeadModel {
 public:
  explicit RpfPatch(Description& settings)
      : attribute_dim_(settings.integer("attribute_dim", 512, 1)),
        embedding_dim_(settings.integer("embedding_dim", 1024, 1)),
        hidden_dim_(settings.integer("hidden_dim", 512, 1)),
        heads_(settings.integer("heads", 12, 1)),
        dropout_(settings.number("dropout", 0.1, 0, 1)) {}

  size_t tensors() const override { return 23; }
  int64_t embedding_dim() const override { return embedding_dim_; }
  int64_t table_dim() const override { return attribute_dim_; }
  bool attends() const override { return false; }

  TensorSpecs spec(const HeadSizes& sizes) const override {
    const int64_t width = sizes.channels;
    TORCH_CHECK_VALUE(width % heads_ == 0, "rpf_patch: heads must divide the ", width,
                      " channels of the map, got ", heads_);
    constexpr LinearInit kInit = LinearInit::kTruncatedNormal;
    TensorSpecs specs;
    specs.push_back({"type_embedding", {2, width}, Initializer::kTruncatedNormal, 0.02});
    add_linear(specs, "attribute_proj", width, attribute_dim_, kInit);
    add_layer_norm(specs, "token_norm", width);
    add_linear(specs, "attn.q", width, width, kInit);
    add_linear(specs, "attn.k", width, width, kInit);
    add_linear(specs, "attn.v", width, width, kInit);
    add_linear(specs, "attn.proj", width, width, kInit);
    add_linear(specs, "pooled_proj", embedding_dim_, width, kInit);
    add_layer_norm(specs, "mlp_norm", embedding_dim_);
    add_linear(specs, "mlp.fc1", hidden_dim_, embedding_dim_, kInit);
    add_linear(specs, "mlp.fc2", embedding_dim_, hidden_dim_, kInit);
    add_layer_norm(specs, "norm", embedding_dim_);
    return specs;
  }

  HeadOutput embed(const HeadInput& input, Weights& w, const Mode& mode) const override {
    TORCH_CHECK_VALUE(input.attributes.dim() == 2 && input.attributes.sym_size(1) == 1,
                      "rpf_patch: attributes must have shape [B, 1], one for each crop, got ",
                      input.attributes.sym_sizes());
    const Tensor& type = w.next();
    const Affine attribute_proj = w.next_affine();
    const Affine token_norm = w.next_affine();
    const Affine q = w.next_affine();
    const Affine k = w.next_affine();
    const Affine v = w.next_affine();
    const Affine proj = w.next_affine();
    const Affine pooled_proj = w.next_affine();
    const Affine mlp_norm = w.next_affine();
    const Affine fc1 = w.next_affine();
    const Affine fc2 = w.next_affine();
    const Affine norm = w.next_affine();

    const Tensor tokens = layer_norm(map_to_tokens(input.features) + type[1], token_norm);
    const Tensor embedded = at::embedding(input.table, input.attributes);  // [B, 1, D]
    const Tensor query = layer_norm(linear(embedded, attribute_proj) + type[0], token_norm);
    const Tensor mixed = at::scaled_dot_product_attention(split_heads(linear(query, q), heads_),
                                                          split_heads(linear(tokens, k), heads_),
                                                          split_heads(linear(tokens, v), heads_));
    const Tensor pooled = linear(linear(join_heads(mixed), proj), pooled_proj);  // [B, 1, E]
    const Tensor refined = residual_mlp(pooled, layer_norm(pooled, mlp_norm), fc1, fc2,
                                        /*gelu=*/true, dropout_, mode.training);
    HeadOutput out;
    out.embedding = layer_norm(refined, norm);
    return out;
  }

 private:
  int64_t attribute_dim_, embedding_dim_, hidden_dim_, heads_;
  double dropout_;
};

}  // namespace

std::unique_ptr<HeadModel> make_rpf_region(Description& settings) {
  return std::make_unique<RpfRegion>(settings);
}

std::unique_ptr<HeadModel> make_rpf_patch(Description& settings) {
  return std::make_unique<RpfPatch>(settings);
}

}  // namespace placket
