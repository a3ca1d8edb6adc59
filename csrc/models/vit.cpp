#include <ATen/ATen.h>

#include <algorithm>
#include <regex>

#include "models/trunk_model.h"

// "An Image is Worth 16x16 Words" (Dosovitskiy et al., ICLR 2021): pre-norm blocks, learned
// positions, a class token that takes part in the attention and is left out of the map. The names
// are timm's.
namespace placket {

using at::Tensor;

namespace {

struct VitConfig {
  int64_t width = 768;
  int64_t depth = 12;
  int64_t heads = 12;  // width / 64 unless given
  int64_t patch = 16;
  int64_t image = 224;  // side the positions are made for
  int64_t mlp = 3072;   // hidden width
  double dropout = 0.0;
  bool norm = false;  // LayerNorm after the last block
};

class Vit : public TrunkModel {
 public:
  explicit Vit(const VitConfig& config) : config_(config) {}

  int64_t channels() const override { return config_.width; }
  Normalization normalization() const override { return {{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}}; }

  TensorSpecs spec() const override {
    const int64_t width = config_.width;
    const int64_t side = config_.image / config_.patch;
    const int64_t patch = config_.patch;
    TensorSpecs specs;
    specs.push_back({"cls_token", {1, 1, width}, Initializer::kZeros});
    specs.push_back(
        {"pos_embed", {1, side * side + 1, width}, Initializer::kTruncatedNormal, 0.02});
    const double fan_in = double(3 * patch * patch);
    specs.push_back(
        {"patch_embed.proj.weight", {width, 3, patch, patch}, Initializer::kLinear, fan_in});
    specs.push_back({"patch_embed.proj.bias", {width}, Initializer::kLinear, fan_in});
    for (int64_t i = 0; i < config_.depth; ++i) {
      const std::string name = "blocks." + std::to_string(i);
      add_layer_norm(specs, name + ".norm1", width);
      add_linear(specs, name + ".attn.qkv", 3 * width, width, LinearInit::kTruncatedNormal);
      add_linear(specs, name + ".attn.proj", width, width, LinearInit::kTruncatedNormal);
      add_layer_norm(specs, name + ".norm2", width);
      add_linear(specs, name + ".mlp.fc1", config_.mlp, width, LinearInit::kTruncatedNormal);
      add_linear(specs, name + ".mlp.fc2", width, config_.mlp, LinearInit::kTruncatedNormal);
    }
    if (config_.norm) add_layer_norm(specs, "norm", width);
    return specs;
  }

  std::vector<Tensor> maps(const Tensor& images, Weights& weights, const Mode& mode,
                           size_t /*count*/) const override {
    const auto dropout = [&](const Tensor& x) {
      return at::dropout(x, config_.dropout, mode.training);
    };
    const Tensor& class_token = weights.next();
    const Tensor& positions = weights.next();
    const Tensor map = conv2d(images, weights, {.stride = config_.patch, .bias = true});
    const c10::SymInt height = map.sym_size(2);
    const c10::SymInt columns = map.sym_size(3);
    check_size(images);

    Tensor x = at::cat(
        {class_token.expand_symint({images.sym_size(0), 1, config_.width}), map_to_tokens(map)}, 1);
    const int64_t side = config_.image / config_.patch;
    x = dropout(x + positions_for(positions.squeeze(0), side, height, columns));
    for (int64_t i = 0; i < config_.depth; ++i) {
      Tensor y = layer_norm(x, weights.next_affine());
      x = x + attention(y, weights);
      y = layer_norm(x, weights.next_affine());
      y = dropout(at::gelu(linear(y, weights.next_affine())));
      x = x + dropout(linear(y, weights.next_affine()));
    }
    if (config_.norm) x = layer_norm(x, weights.next_affine());
    return {tokens_to_map(x.slice(1, 1), height, columns)};
  }

 private:
  void check_size(const Tensor& images) const {
    for (int64_t dim : {2, 3}) {
      TORCH_CHECK_VALUE(images.sym_size(dim) % config_.patch == 0,
                        "vit: images must have sides divisible by the patch, ", config_.patch,
                        ", got ", images.sym_sizes());
    }
  }

  Tensor attention(const Tensor& x, Weights& weights) const {
    const std::vector<Tensor> qkv = linear(x, weights.next_affine()).chunk(3, 2);
    const Tensor mixed = at::scaled_dot_product_attention(split_heads(qkv[0], config_.heads),
                                                          split_heads(qkv[1], config_.heads),
                                                          split_heads(qkv[2], config_.heads));
    return linear(join_heads(mixed), weights.next_affine());
  }

  VitConfig config_;
};

}  // namespace

std::unique_ptr<TrunkModel> make_vit(Description& settings) {
  VitConfig config;
  if (settings.name() == "vit") {
    config.width = settings.integer("width", config.width, 1);
    config.depth = settings.integer("depth", config.depth, 1);
    config.heads = settings.integer("heads", std::max<int64_t>(1, config.width / 64), 1);
    config.patch = settings.integer("patch", config.patch, 1);
    config.image = settings.integer("image", config.image, 1);
    config.mlp = settings.integer("mlp", 4 * config.width, 1);
  } else {
    std::smatch match;
    const std::regex pattern("vit_(tiny|small|base|large)_patch([0-9]{1,4})_([0-9]{1,5})");
    if (!std::regex_match(settings.name(), match, pattern)) {
      settings.fail("name", "have the form vit_{tiny,small,base,large}_patchP_R",
                    "'" + settings.name() + "'");
    }
    const std::string size = match[1];
    if (size == "tiny") config.width = 192, config.heads = 3;
    if (size == "small") config.width = 384, config.heads = 6;
    if (size == "large") config.width = 1024, config.depth = 24, config.heads = 16;
    config.mlp = 4 * config.width;
    config.patch = std::stoll(match[2]);
    config.image = std::stoll(match[3]);
  }
  config.dropout = settings.number("dropout", 0.0, 0.0, 1.0);
  config.norm = settings.boolean("norm", false);
  if (config.width % config.heads != 0) {
    settings.fail("width", "be divisible by heads, " + std::to_string(config.heads),
                  std::to_string(config.width));
  }
  if (config.patch < 1 || config.image % config.patch != 0 || config.image < config.patch) {
    settings.fail("image", "be divisible by patch, " + std::to_string(config.patch),
                  std::to_string(config.image));
  }
  return std::make_unique<Vit>(config);
}

}  // namespace placket
