#include "models/clip_transformer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace placket {

using at::Tensor;

namespace {

void add_normal_linear(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in,
                       double scale) {
  specs.push_back({name + ".weight", {out, in}, Initializer::kNormal, scale});
  specs.push_back({name + ".bias", {out}});
}

// In place on a layer's output, which no backward pass reads: x sigmoid(1.702 x) as three products
// would keep a tensor of this size more.
Tensor apply_gelu(const Tensor& x, bool quick_gelu) {
  return quick_gelu ? at::silu(x.mul_(1.702)).mul_(1 / 1.702) : at::gelu(x);
}

// Rows of a linear layer, from one on.
Affine linear_rows(const Affine& layer, int64_t from, int64_t count) {
  return {layer.weight.narrow(0, from, count), layer.bias.narrow(0, from, count)};
}

Tensor attention(const Tensor& tokens, const Affine& in_proj, const TransformerConfig& config) {
  const std::vector<Tensor> qkv = linear(tokens, in_proj).chunk(3, 2);
  return at::scaled_dot_product_attention(
      split_heads(qkv[0], config.heads), split_heads(qkv[1], config.heads),
      split_heads(qkv[2], config.heads), {}, /*dropout_p=*/0.0, config.causal);
}

// The same for one query of each row.
Tensor attention_at(const Tensor& only, const Tensor& tokens, const Affine& in_proj,
                    const TransformerConfig& config) {
  const Tensor query = linear(pick_tokens(tokens, only), linear_rows(in_proj, 0, config.width));
  const std::vector<Tensor> kv =
      linear(tokens, linear_rows(in_proj, config.width, 2 * config.width)).chunk(2, 2);
  std::optional<Tensor> visible;
  if (config.causal) {
    visible = at::arange(tokens.sym_size(1), only.options())
                  .le(only.unsqueeze(1))
                  .unsqueeze(1)
                  .unsqueeze(1);  // [B, 1, 1, N]
  }
  return at::scaled_dot_product_attention(split_heads(query, config.heads),
                                          split_heads(kv[0], config.heads),
                                          split_heads(kv[1], config.heads), visible);
}

}  // namespace

TransformerConfig read_transformer(Description& settings, const TransformerConfig& published) {
  TransformerConfig config = published;
  config.width = settings.integer("width", published.width, 1);
  config.depth = settings.integer("depth", published.depth, 1);
  const int64_t heads = published.heads > 0 ? published.heads : config.width / 64;
  config.heads = settings.integer("heads", std::max<int64_t>(1, heads), 1);
  config.mlp = settings.integer("mlp", published.mlp > 0 ? published.mlp : 4 * config.width, 1);
  const char* activation = published.quick_gelu ? "quick_gelu" : "gelu";
  config.quick_gelu =
      settings.choice("activation", activation, {"quick_gelu", "gelu"}) == "quick_gelu";
  if (config.width % config.heads != 0) {
    settings.fail("width", "be divisible by heads, " + std::to_string(config.heads),
                  std::to_string(config.width));
  }
  return config;
}

void add_transformer(TensorSpecs& specs, const std::string& name, const TransformerConfig& config) {
  const int64_t width = config.width;
  const double input_scale = 1 / std::sqrt(double(width));
  const double output_scale = input_scale / std::sqrt(2.0 * double(config.depth));
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string block = name + ".resblocks." + std::to_string(i);
    add_layer_norm(specs, block + ".ln_1", width);
    specs.push_back(
        {block + ".attn.in_proj_weight", {3 * width, width}, Initializer::kNormal, input_scale});
    specs.push_back({block + ".attn.in_proj_bias", {3 * width}});
    add_normal_linear(specs, block + ".attn.out_proj", width, width, output_scale);
    add_layer_norm(specs, block + ".ln_2", width);
    add_normal_linear(specs, block + ".mlp.c_fc", config.mlp, width,
                      1 / std::sqrt(2.0 * double(width)));
    add_normal_linear(specs, block + ".mlp.c_proj", width, config.mlp, output_scale);
  }
}

Tensor transformer(Tensor tokens, Weights& weights, const TransformerConfig& config,
                   const Tensor& only) {
  for (int64_t i = 0; i < config.depth; ++i) {
    const Tensor y = layer_norm(tokens, weights.next_affine(), config.norm_eps);
    const Affine in_proj = weights.next_affine();
    Tensor mixed;
    if (only.defined() && i + 1 == config.depth) {
      mixed = attention_at(only, y, in_proj, config);
      tokens = pick_tokens(tokens, only);
    } else {
      mixed = attention(y, in_proj, config);
    }
    tokens = tokens + linear(join_heads(mixed), weights.next_affine());
    Tensor hidden = layer_norm(tokens, weights.next_affine(), config.norm_eps);
    hidden = apply_gelu(linear(hidden, weights.next_affine()), config.quick_gelu);
    tokens = tokens + linear(hidden, weights.next_affine());
  }
  return tokens;
}

Tensor pick_tokens(const Tensor& tokens, const Tensor& positions) {
  return tokens.gather(
      1, positions.unsqueeze(1).unsqueeze(1).expand_symint({-1, -1, tokens.sym_size(2)}));
}

}  // namespace placket
