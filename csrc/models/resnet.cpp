#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "models/trunk_model.h"

// "Deep Residual Learning for Image Recognition" (He et al., CVPR 2016) without its last
// layers; the stride is in the 3x3 convolution and the names are torchvision's.
namespace placket {

using at::Tensor;

namespace {

struct ResidualBlock {
  std::string name;
  int64_t in, width, out, stride;
  bool bottleneck;

  bool projects() const { return stride != 1 || in != out; }

  void add_spec(TensorSpecs& specs) const {
    if (bottleneck) {
      add_conv(specs, name + ".conv1", width, in, 1);
      add_batch_norm(specs, name + ".bn1", width);
      add_conv(specs, name + ".conv2", width, width, 3);
      add_batch_norm(specs, name + ".bn2", width);
      add_conv(specs, name + ".conv3", out, width, 1);
      add_batch_norm(specs, name + ".bn3", out);
    } else {
      add_conv(specs, name + ".conv1", width, in, 3);
      add_batch_norm(specs, name + ".bn1", width);
      add_conv(specs, name + ".conv2", out, width, 3);
      add_batch_norm(specs, name + ".bn2", out);
    }
    if (projects()) {
      add_conv(specs, name + ".downsample.0", out, in, 1);
      add_batch_norm(specs, name + ".downsample.1", out);
    }
  }

  Tensor forward(const Tensor& x, Weights& weights, const Mode& mode) const {
    const auto layer = [&](const Tensor& input, const Conv& conv, Activation activation) {
      return conv_norm(input, weights.next_normed_conv(), conv, mode, activation);
    };
    const Conv spatial{.stride = stride, .padding = 1};
    Tensor y = bottleneck ? layer(layer(x, {}, Activation::kRelu), spatial, Activation::kRelu)
                          : layer(x, spatial, Activation::kRelu);
    const NormedConv last = weights.next_normed_conv();
    const Tensor shortcut = projects() ? layer(x, {.stride = stride}, Activation::kNone) : x;
    return conv_norm(y, last, {.padding = bottleneck ? 0 : 1}, mode, Activation::kRelu, {},
                     shortcut);
  }
};

using Depths = std::array<size_t, 3>;  // blocks of layer1, layer2, layer3

class ResNet : public TrunkModel {
 public:
  ResNet(const Depths& depths, size_t stage, bool bottleneck, double width) {
    const auto scaled = [&](int64_t channels) {
      return std::max<int64_t>(1, std::llround(width * double(channels)));
    };
    stem_ = scaled(64);
    channels_ = stem_;
    for (size_t layer = 0; layer < stage; ++layer) {
      const int64_t inner = scaled(int64_t(64) << layer);
      const int64_t out = bottleneck ? 4 * inner : inner;
      for (size_t i = 0; i < depths[layer]; ++i) {
        const std::string name = "layer" + std::to_string(layer + 1) + "." + std::to_string(i);
        blocks_.push_back({name, channels_, inner, out, layer > 0 && i == 0 ? 2 : 1, bottleneck});
        channels_ = out;
      }
    }
  }

  int64_t channels() const override { return channels_; }

  TensorSpecs spec() const override {
    TensorSpecs specs;
    add_conv(specs, "conv1", stem_, 3, 7);
    add_batch_norm(specs, "bn1", stem_);
    for (const ResidualBlock& block : blocks_) block.add_spec(specs);
    return specs;
  }

  Tensor features(const Tensor& images, Weights& weights, const Mode& mode) const override {
    Tensor x = conv_norm(images, weights.next_normed_conv(), {.stride = 2, .padding = 3}, mode,
                         Activation::kRelu);
    x = at::max_pool2d(x, {3, 3}, {2, 2}, {1, 1}, {1, 1});
    for (const ResidualBlock& block : blocks_) x = block.forward(x, weights, mode);
    return x;
  }

 private:
  int64_t stem_;
  int64_t channels_;
  std::vector<ResidualBlock> blocks_;
};

}  // namespace

std::unique_ptr<TrunkModel> make_resnet(Description& settings) {
  const double width = settings.number("width", 1.0, 1.0 / 64, 16);
  const bool bottleneck = settings.name() == "resnet50";
  const Depths depths = settings.name() == "resnet18" ? Depths{2, 2, 2} : Depths{3, 4, 6};
  const size_t stage = settings.choice("stage", "3", {"2", "3"}) == "2" ? 2 : 3;
  return std::make_unique<ResNet>(depths, stage, bottleneck, width);
}

}  // namespace placket
