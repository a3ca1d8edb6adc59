#include <ATen/ATen.h>

#include <cmath>

#include "models/clip_transformer.h"
#include "models/image_tower_model.h"

// The vision transformer of CLIP (Radford et al., ICML 2021): a LayerNorm before the blocks and one
// after them; the class token, projected, is the embedding. The names are OpenAI's.
namespace placket {

using at::Tensor;

namespace {

struct ClipVitConfig {
  const char* name;
  TransformerConfig transformer;
  int64_t patch;
  int64_t image;  // side the positions are made for
  int64_t embedding_dim;
};

constexpr ClipVitConfig kClipVits[] = {
    {"clip_vit_b_32", {.width = 768, .depth = 12, .heads = 0, .mlp = 0}, 32, 224, 512},
    {"clip_vit_b_16", {.width = 768, .depth = 12, .heads = 0, .mlp = 0}, 16, 224, 512},
    {"clip_vit_l_14", {.width = 1024, .depth = 24, .heads = 0, .mlp = 0}, 14, 224, 768},
    {"clip_vit_h_14",
     {.width = 1280, .depth = 32, .heads = 16, .mlp = 0, .quick_gelu = false},
     14,
     224,
     1024},
    {"clip_vit", {.width = 768, .depth = 12, .heads = 0, .mlp = 0}, 32, 224, 512},
};

class ClipVit : public ImageTowerModel {
 public:
  explicit ClipVit(const ClipVitConfig& config) : config_(config) {}

  int64_t embedding_dim() const override { return config_.embedding_dim; }
  int64_t image_size() const override { return config_.image; }

  TensorSpecs spec() const override {
    const int64_t width = config_.transformer.width;
    const int64_t patch = config_.patch;
    const double scale = 1 / std::sqrt(double(width));
    TensorSpecs specs;
    specs.push_back({"class_embedding", {width}, Initializer::kNormal, scale});
    specs.push_back(
        {"positional_embedding", {side() * side() + 1, width}, Initializer::kNormal, scale});
    specs.push_back({"conv1.weight",
                     {width, 3, patch, patch},
                     Initializer::kLinear,
                     double(3 * patch * patch)});
    add_layer_norm(specs, "ln_pre", width);
    add_transformer(specs, "transformer", config_.transformer);
    add_layer_norm(specs, "ln_post", width);
    specs.push_back({"proj", {width, config_.embedding_dim}, Initializer::kNormal, scale});
    return specs;
  }

  ImageTowerOutput embed(const Tensor& images, Weights& weights, bool tokens,
                         const Mode& /*mode*/) const override {
    for (int64_t dim : {2, 3}) {
      TORCH_CHECK_VALUE(images.sym_size(dim) % config_.patch == 0,
                        "clip_vit: images must have sides divisible by the patch, ", config_.patch,
                        ", got ", images.sym_sizes());
    }
    const c10::SymInt count = images.sym_size(0);
    const TransformerConfig& settings = config_.transformer;
    const Tensor& class_embedding = weights.next();
    const Tensor& positions = weights.next();
    const Tensor map = conv2d(images, weights, {.stride = config_.patch});
    Tensor x =
        at::cat({class_embedding.expand_symint({count, 1, settings.width}), map_to_tokens(map)}, 1);
    x = x + positions_for(positions, side(), map.sym_size(2), map.sym_size(3));
    x = layer_norm(x, weights.next_affine(), settings.norm_eps);
    Tensor class_only;
    if (!tokens) class_only = at::zeros_symint({count}, images.options().dtype(at::kLong));
    x = transformer(x, weights, settings, class_only);
    x = layer_norm(x, weights.next_affine(), settings.norm_eps).matmul(weights.next());
    return {x.select(1, 0), tokens ? x : Tensor()};
  }

 private:
  int64_t side() const { return config_.image / config_.patch; }

  ClipVitConfig config_;
};

}  // namespace

std::unique_ptr<ImageTowerModel> make_clip_vit(Description& settings) {
  std::vector<std::string> names;
  for (const ClipVitConfig& published : kClipVits) {
    names.emplace_back(published.name);
    if (settings.name() != published.name) continue;
    ClipVitConfig config = published;
    config.transformer = read_transformer(settings, published.transformer);
    config.patch = settings.integer("patch", published.patch, 1);
    config.image = settings.integer("image", published.image, 1);
    config.embedding_dim = settings.integer("embedding_dim", published.embedding_dim, 1);
    if (config.image % config.patch != 0) {
      settings.fail("image", "be divisible by patch, " + std::to_string(config.patch),
                    std::to_string(config.image));
    }
    return std::make_unique<ClipVit>(config);
  }
  settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
}

}  // namespace placket
