#include "models/rpf.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "models/layers.h"
#include "ops/attention_pool.h"

namespace placket {

using at::Tensor;

namespace {

constexpr size_t kRegionTensors = 16;
constexpr size_t kPatchTensors = 23;

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

void check_config(const RpfConfig& config) {
  const auto positive = [](const char* name, int64_t value) {
    TORCH_CHECK_VALUE(value >= 1, "rpf: ", name, " must be at least 1, got ", value);
  };
  positive("attributes", config.attributes);
  positive("attribute_dim", config.attribute_dim);
  positive("embedding_dim", config.embedding_dim);
  positive("hidden_dim", config.hidden_dim);
  positive("heads", config.heads);
  TORCH_CHECK_VALUE(config.dropout >= 0 && config.dropout <= 1,
                    "rpf: dropout must be from 0 to 1, got ", config.dropout);
  if (config.patch_trunk.empty()) return;
  const int64_t channels = trunk_channels(config.trunk);
  TORCH_CHECK_VALUE(config.project_background || config.embedding_dim == channels,
                    "rpf: embedding_dim must be the ", channels, " channels of trunk '",
                    config.trunk, "' unless project_background is true, got ",
                    config.embedding_dim);
  const int64_t width = trunk_channels(config.patch_trunk);
  TORCH_CHECK_VALUE(width % config.heads == 0, "rpf: heads must divide the ", width,
                    " channels of patch_trunk '", config.patch_trunk, "', got ", config.heads);
}

std::tuple<Tensor, Tensor, Tensor> rpf_region_head_op(const Tensor& features,
                                                      const Tensor& attribute_embedding,
                                                      const Tensor& attributes,
                                                      at::TensorList weights, double dropout,
                                                      bool project_background, bool background,
                                                      bool training) {
  auto out = rpf_region_head(features, attribute_embedding, attributes, weights, dropout,
                             project_background, background, training);
  if (!background) std::get<1>(out) = at::empty({0}, features.options());
  return out;
}

}  // namespace

TensorSpecs rpf_region_head_spec(const RpfConfig& config) {
  const int64_t channels = trunk_channels(config.trunk);
  TensorSpecs specs;
  add_layer_norm(specs, "image_norm", channels);
  add_layer_norm(specs, "attribute_norm", config.attribute_dim);
  add_linear(specs, "image_proj", config.attribute_dim, channels);
  add_linear(specs, "attribute_proj", config.attribute_dim, config.attribute_dim);
  if (config.project_per_attribute) {
    const int64_t tables = config.attributes;
    const int64_t width = config.embedding_dim;
    const double fan_in = double(channels);
    specs.push_back(
        {"pooled_proj.weight", {tables, width, channels}, Initializer::kLinear, fan_in});
    specs.push_back({"pooled_proj.bias", {tables, width}, Initializer::kLinear, fan_in});
  } else {
    add_linear(specs, "pooled_proj", config.embedding_dim, channels);
  }
  add_layer_norm(specs, "norm", config.embedding_dim);
  add_linear(specs, "mlp.fc1", config.hidden_dim, config.embedding_dim);
  add_linear(specs, "mlp.fc2", config.embedding_dim, config.hidden_dim);
  TORCH_INTERNAL_ASSERT(specs.size() == kRegionTensors);
  return specs;
}

TensorSpecs rpf_patch_head_spec(const RpfConfig& config) {
  const int64_t width = trunk_channels(config.patch_trunk);
  constexpr LinearInit kInit = LinearInit::kTruncatedNormal;
  TensorSpecs specs;
  specs.push_back({"type_embedding", {2, width}, Initializer::kTruncatedNormal, 0.02});
  add_linear(specs, "attribute_proj", width, config.attribute_dim, kInit);
  add_layer_norm(specs, "token_norm", width);
  add_linear(specs, "attn.q", width, width, kInit);
  add_linear(specs, "attn.k", width, width, kInit);
  add_linear(specs, "attn.v", width, width, kInit);
  add_linear(specs, "attn.proj", width, width, kInit);
  add_linear(specs, "pooled_proj", config.embedding_dim, width, kInit);
  add_layer_norm(specs, "mlp_norm", config.embedding_dim);
  add_linear(specs, "mlp.fc1", config.hidden_dim, config.embedding_dim, kInit);
  add_linear(specs, "mlp.fc2", config.embedding_dim, config.hidden_dim, kInit);
  add_layer_norm(specs, "norm", config.embedding_dim);
  TORCH_INTERNAL_ASSERT(specs.size() == kPatchTensors);
  return specs;
}

TensorSpecs rpf_spec(const RpfConfig& config) {
  check_config(config);
  TensorSpecs specs;
  specs.push_back({"attribute_embedding.weight",
                   {config.attributes, config.attribute_dim},
                   Initializer::kNormal});
  add_specs(specs, "region.trunk.", trunk_spec(config.trunk));
  add_specs(specs, "region.head.", rpf_region_head_spec(config));
  if (!config.patch_trunk.empty()) {
    add_specs(specs, "patch.trunk.", trunk_spec(config.patch_trunk));
    add_specs(specs, "patch.head.", rpf_patch_head_spec(config));
  }
  return specs;
}

std::tuple<Tensor, Tensor, Tensor> rpf_region_head(const Tensor& features,
                                                   const Tensor& attribute_embedding,
                                                   const Tensor& attributes, at::TensorList weights,
                                                   double dropout, bool project_background,
                                                   bool background, bool training) {
  constexpr const char* kName = "rpf_region_head";
  Weights w(kName, weights, kRegionTensors);
  TORCH_CHECK_VALUE(features.dim() == 4, kName, ": features must have shape [B, C, h, w], got ",
                    features.sym_sizes());
  TORCH_CHECK_VALUE(attributes.dim() == 1 ||
                        (attributes.dim() == 2 && attributes.sym_size(0) == features.sym_size(0)),
                    kName, ": attributes must have shape [B, K] or [K], got ",
                    attributes.sym_sizes());
  const Affine image_norm = w.next_affine();
  const Affine attribute_norm = w.next_affine();
  const Affine image_proj = w.next_affine();
  const Affine attribute_proj = w.next_affine();
  const Affine pooled_proj = w.next_affine();
  const Affine norm = w.next_affine();
  const Affine fc1 = w.next_affine();
  const Affine fc2 = w.next_affine();
  TORCH_CHECK_VALUE(
      pooled_proj.weight.dim() == 2 || pooled_proj.weight.size(0) == attribute_embedding.size(0),
      kName, ": pooled_proj.weight must have one projection for each of the ",
      attribute_embedding.size(0), " attributes, got ", pooled_proj.weight.sizes());

  const Tensor tokens = layer_norm(map_to_tokens(features), image_norm);   // [B, P, C]
  const Tensor embedded = at::embedding(attribute_embedding, attributes);  // [(B,) K, D]
  const Tensor queries = linear(layer_norm(embedded, attribute_norm), attribute_proj).tanh();
  const Tensor keys = linear(tokens, image_proj).tanh();  // [B, P, D]
  const double scale = 1 / std::sqrt(double(attribute_embedding.size(1)));
  const Tensor logits = queries.matmul(keys.transpose(1, 2)) * scale;  // [B, K, P]
  // Attention weights add up to 1, so that projecting and pooling commute; with more attributes
  // than positions it is cheaper to project the positions.
  const bool project_positions =
      !background && pooled_proj.weight.dim() == 2 &&
      attributes.sym_size(-1) > features.sym_size(2) * features.sym_size(3);
  const Tensor values = project_positions ? linear(tokens, pooled_proj) : tokens;
  const auto [pooled, rest, attention] = attention_pool(logits, values.transpose(1, 2), background);

  // One LayerNorm before and after the MLP, as in the published code.
  const auto embed = [&](const Tensor& x) {
    return layer_norm(
        residual_mlp(x, layer_norm(x, norm), fc1, fc2, /*gelu=*/false, dropout, training), norm);
  };
  const Tensor region =
      embed(project_positions ? pooled : project(pooled, pooled_proj, attributes));
  Tensor background_embedding;
  if (background) {
    TORCH_CHECK_VALUE(project_background || pooled.size(2) == region.size(2), kName,
                      ": features must have the ", region.size(2),
                      " channels of the embedding unless project_background is true, got ",
                      pooled.size(2));
    background_embedding =
        embed(project_background ? project(rest, pooled_proj, attributes) : rest);
  }
  const Tensor map = attention.unflatten_symint(2, {features.sym_size(2), features.sym_size(3)});
  return {region, background_embedding, map};
}

Tensor rpf_patch_head(const Tensor& features, const Tensor& attribute_embedding,
                      const Tensor& attributes, at::TensorList weights, int64_t heads,
                      double dropout, bool training) {
  constexpr const char* kName = "rpf_patch_head";
  Weights w(kName, weights, kPatchTensors);
  TORCH_CHECK_VALUE(features.dim() == 4, kName, ": features must have shape [V, C, h, w], got ",
                    features.sym_sizes());
  TORCH_CHECK_VALUE(attributes.dim() == 1 && attributes.sym_size(0) == features.sym_size(0), kName,
                    ": attributes must have shape [V] like features, got ", attributes.sym_sizes());
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

  const Tensor tokens = layer_norm(map_to_tokens(features) + type[1], token_norm);  // [V, P, C]
  const Tensor embedded = at::embedding(attribute_embedding, attributes.unsqueeze(1));
  const Tensor query = layer_norm(linear(embedded, attribute_proj) + type[0], token_norm);
  const Tensor mixed = at::scaled_dot_product_attention(split_heads(linear(query, q), heads),
                                                        split_heads(linear(tokens, k), heads),
                                                        split_heads(linear(tokens, v), heads));
  const Tensor pooled = linear(linear(join_heads(mixed), proj), pooled_proj).squeeze(1);  // [V, E]
  const Tensor refined = residual_mlp(pooled, layer_norm(pooled, mlp_norm), fc1, fc2, /*gelu=*/true,
                                      dropout, training);
  return layer_norm(refined, norm);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "rpf_region_head(Tensor features, Tensor attribute_embedding, Tensor attributes, "
      "Tensor[] weights, float dropout=0.1, bool project_background=False, bool background=False, "
      "bool training=False) -> (Tensor region, Tensor background, Tensor attention)",
      rpf_region_head_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "rpf_patch_head(Tensor features, Tensor attribute_embedding, Tensor attributes, "
      "Tensor[] weights, int heads, float dropout=0.1, bool training=False) -> Tensor",
      rpf_patch_head, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
