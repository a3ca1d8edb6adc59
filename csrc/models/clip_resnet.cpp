#include <ATen/ATen.h>

#include <array>
#include <cmath>

#include "models/image_tower_model.h"

// The ResNet of CLIP (Radford et al., ICML 2021): three convolutions as stem, an average over 2 x 2
// where a ResNet has a stride, also before a shortcut's convolution ("ResNet-D", He et al., CVPR
// 2019; antialiased, Zhang, ICML 2019), and attention pooling with the map's mean as query. The
// names are OpenAI's.
namespace placket {

using at::Tensor;

namespace {

Tensor average_pool(const Tensor& x, int64_t stride) {
  return stride > 1 ? at::avg_pool2d(x, {stride, stride}, {stride, stride}) : x;
}

struct AntialiasedBottleneck {
  std::string name;
  int64_t in, width, stride;

  int64_t out() const { return 4 * width; }
  bool projects() const { return stride > 1 || in != out(); }

  void add_spec(TensorSpecs& specs) const {
    add_conv(specs, name + ".conv1", width, in, 1);
    add_batch_norm(specs, name + ".bn1", width);
    add_conv(specs, name + ".conv2", width, width, 3);
    add_batch_norm(specs, name + ".bn2", width);
    add_conv(specs, name + ".conv3", out(), width, 1);
    const size_t bn3 = specs.size();
    add_batch_norm(specs, name + ".bn3", out());
    specs[bn3].initializer = Initializer::kZeros;  // each block begins as its shortcut
    if (projects()) {
      add_conv(specs, name + ".downsample.0", out(), in, 1);
      add_batch_norm(specs, name + ".downsample.1", out());
    }
  }

  Tensor forward(const Tensor& x, Weights& weights, const Mode& mode) const {
    Tensor y = conv_norm(x, weights.next_normed_conv(), {}, mode, Activation::kRelu);
    y = conv_norm(y, weights.next_normed_conv(), {.padding = 1}, mode, Activation::kRelu);
    const NormedConv last = weights.next_normed_conv();
    Tensor shortcut = x;
    if (projects()) {
      shortcut = conv_norm(average_pool(x, stride), weights.next_normed_conv(), {}, mode,
                           Activation::kNone);
    }
    return conv_norm(average_pool(y, stride), last, {}, mode, Activation::kRelu, {}, shortcut);
  }
};

struct ClipResNetConfig {
  const char* name;
  std::array<int64_t, 4> layers;  // blocks of each
  int64_t width;                  // of the first layer; the map has 32 times as many channels
  int64_t image;                  // side the positions are made for
  int64_t embedding_dim;
  int64_t heads = 0;  // width / 2
};

constexpr ClipResNetConfig kClipResNets[] = {
    {"clip_rn50", {3, 4, 6, 3}, 64, 224, 1024},
    {"clip_rn101", {3, 4, 23, 3}, 64, 224, 512},
    {"clip_rn50x4", {4, 6, 10, 6}, 80, 288, 640},
    {"clip_rn50x16", {6, 8, 18, 8}, 96, 384, 768},
    {"clip_rn50x64", {3, 15, 36, 10}, 128, 448, 1024},
    {"clip_resnet", {}, 64, 224, 1024},
};

class ClipResNet : public ImageTowerModel {
 public:
  explicit ClipResNet(const ClipResNetConfig& config) : config_(config) {
    int64_t channels = config.width;
    for (size_t layer = 0; layer < config.layers.size(); ++layer) {
      for (int64_t i = 0; i < config.layers[layer]; ++i) {
        const std::string name = "layer" + std::to_string(layer + 1) + "." + std::to_string(i);
        blocks_.push_back({name, channels, config.width << layer, layer > 0 && i == 0 ? 2 : 1});
        channels = blocks_.back().out();
      }
    }
  }

  int64_t embedding_dim() const override { return config_.embedding_dim; }
  int64_t image_size() const override { return config_.image; }

  TensorSpecs spec() const override {
    const int64_t stem = config_.width / 2;
    TensorSpecs specs;
    add_conv(specs, "conv1", stem, 3, 3);
    add_batch_norm(specs, "bn1", stem);
    add_conv(specs, "conv2", stem, stem, 3);
    add_batch_norm(specs, "bn2", stem);
    add_conv(specs, "conv3", config_.width, stem, 3);
    add_batch_norm(specs, "bn3", config_.width);
    for (const AntialiasedBottleneck& block : blocks_) block.add_spec(specs);
    const int64_t channels = blocks_.back().out();
    const double scale = 1 / std::sqrt(double(channels));
    specs.push_back({"attnpool.positional_embedding",
                     {side() * side() + 1, channels},
                     Initializer::kNormal,
                     scale});
    for (const auto& [name, out] : {std::pair{"q_proj", channels},
                                    {"k_proj", channels},
                                    {"v_proj", channels},
                                    {"c_proj", config_.embedding_dim}}) {
      const std::string layer = std::string("attnpool.") + name;
      specs.push_back({layer + ".weight", {out, channels}, Initializer::kNormal, scale});
      specs.push_back({layer + ".bias", {out}});
    }
    return specs;
  }

  ImageTowerOutput embed(const Tensor& images, Weights& weights, bool tokens,
                         const Mode& mode) const override {
    TORCH_CHECK_VALUE(images.sym_size(2) >= 32 && images.sym_size(3) >= 32,
                      "clip_resnet: images must have sides of at least 32, got ",
                      images.sym_sizes());
    const auto stem = [&](const Tensor& x, int64_t stride) {
      return conv_norm(x, weights.next_normed_conv(), {.stride = stride, .padding = 1}, mode,
                       Activation::kRelu);
    };
    Tensor x = average_pool(stem(stem(stem(images, 2), 1), 1), 2);
    for (const AntialiasedBottleneck& block : blocks_) x = block.forward(x, weights, mode);
    return pool(x, weights, tokens);
  }

 private:
  int64_t side() const { return config_.image / 32; }

  ImageTowerOutput pool(const Tensor& map, Weights& weights, bool tokens) const {
    const Tensor positions =
        positions_for(weights.next(), side(), map.sym_size(2), map.sym_size(3));
    const Affine q_proj = weights.next_affine();
    const Affine k_proj = weights.next_affine();
    const Affine v_proj = weights.next_affine();
    const Affine c_proj = weights.next_affine();
    Tensor x = map_to_tokens(map);
    x = at::cat({x.mean(1, /*keepdim=*/true), x}, 1) + positions;
    const int64_t heads = config_.heads;
    const Tensor values = linear(x, v_proj);
    const Tensor pooled = at::scaled_dot_product_attention(
        split_heads(linear(x.narrow(1, 0, 1), q_proj), heads),
        split_heads(linear(x, k_proj), heads), split_heads(values, heads));
    const Tensor embedding = linear(join_heads(pooled), c_proj);  // [B, 1, D]
    ImageTowerOutput out{embedding.squeeze(1), {}};
    if (tokens) out.tokens = at::cat({embedding, linear(values.slice(1, 1), c_proj)}, 1);
    return out;
  }

  ClipResNetConfig config_;
  std::vector<AntialiasedBottleneck> blocks_;
};

}  // namespace

std::unique_ptr<ImageTowerModel> make_clip_resnet(Description& settings) {
  std::vector<std::string> names;
  for (const ClipResNetConfig& published : kClipResNets) {
    names.emplace_back(published.name);
    if (settings.name() != published.name) continue;
    ClipResNetConfig config = published;
    if (settings.name() == "clip_resnet") {
      const std::vector<int64_t> layers = settings.integers("layers", 1);
      if (layers.size() != config.layers.size()) {
        settings.fail("layers", "be four numbers", std::to_string(layers.size()));
      }
      std::copy(layers.begin(), layers.end(), config.layers.begin());
    }
    config.width = settings.integer("width", published.width, 2);
    config.heads = settings.integer("heads", config.width / 2, 1);
    config.image = settings.integer("image", published.image, 32);
    config.embedding_dim = settings.integer("embedding_dim", published.embedding_dim, 1);
    if (config.width % 2 != 0) {
      settings.fail("width", "be even", std::to_string(config.width));
    }
    if (32 * config.width % config.heads != 0) {
      settings.fail("heads", "divide the map's channels, " + std::to_string(32 * config.width),
                    std::to_string(config.heads));
    }
    if (config.image % 32 != 0) {
      settings.fail("image", "be divisible by 32", std::to_string(config.image));
    }
    return std::make_unique<ClipResNet>(config);
  }
  settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
}

}  // namespace placket
