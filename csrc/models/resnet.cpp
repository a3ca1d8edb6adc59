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
  bool bottleneck, ibn;

  bool projects() const { return stride != 1 || in != out; }

  void add_spec(TensorSpecs& specs) const {
    if (bottleneck) {
      add_conv(specs, name + ".conv1", width, in, 1);
      add_first_norm(specs);
      add_conv(specs, name + ".conv2", width, width, 3);
      add_batch_norm(specs, name + ".bn2", width);
      add_conv(specs, name + ".conv3", out, width, 1);
      add_batch_norm(specs, name + ".bn3", out);
    } else {
      add_conv(specs, name + ".conv1", width, in, 3);
      add_first_norm(specs);
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
    const Conv first = bottleneck ? Conv{} : spatial;
    Tensor y = ibn ? half_by_instance(x, weights, first, mode) : layer(x, first, Activation::kRelu);
    if (bottleneck) y = layer(y, spatial, Activation::kRelu);
    const NormedConv last = weights.next_normed_conv();
    const Tensor shortcut = projects() ? layer(x, {.stride = stride}, Activation::kNone) : x;
    return conv_norm(y, last, {.padding = bottleneck ? 0 : 1}, mode, Activation::kRelu, {},
                     shortcut);
  }

 private:
  // IBN-a's norm, named as its authors do: InstanceNorm on half of the channels.
  void add_first_norm(TensorSpecs& specs) const {
    if (!ibn) return add_batch_norm(specs, name + ".bn1", width);
    specs.push_back({name + ".bn1.IN.weight", {width / 2}, Initializer::kOnes});
    specs.push_back({name + ".bn1.IN.bias", {width / 2}, Initializer::kZeros});
    add_batch_norm(specs, name + ".bn1.BN", width - width / 2);
  }

  Tensor half_by_instance(const Tensor& x, Weights& weights, const Conv& conv,
                          const Mode& mode) const {
    const Tensor& kernel = weights.next();
    const Affine instance = weights.next_affine();
    NormedConv rest = weights.next_norm();
    const int64_t half = width / 2;
    rest.kernel = kernel.narrow(0, half, width - half);
    return at::cat({at::relu(conv_instance_norm(x, kernel.narrow(0, 0, half), instance, conv)),
                    conv_norm(x, rest, conv, mode, Activation::kRelu)},
                   1);
  }
};

using Depths = std::array<size_t, 4>;  // blocks of layer1 to layer4

class ResNet : public TrunkModel {
 public:
  struct Settings {
    Depths depths;
    size_t stage;
    bool bottleneck, ibn;
    double width;
    int64_t last_stride;
  };

  explicit ResNet(const Settings& settings) {
    const auto& [depths, stage, bottleneck, ibn, width, last_stride] = settings;
    const auto scaled = [&](int64_t channels) {
      return std::max<int64_t>(1, std::llround(width * double(channels)));
    };
    stem_ = scaled(64);
    channels_ = stem_;
    for (size_t layer = 0; layer < stage; ++layer) {
      const int64_t inner = scaled(int64_t(64) << layer);
      const int64_t out = bottleneck ? 4 * inner : inner;
      const int64_t stride = layer == 0 ? 1 : layer == 3 ? last_stride : 2;
      for (size_t i = 0; i < depths[layer]; ++i) {
        const std::string name = "layer" + std::to_string(layer + 1) + "." + std::to_string(i);
        blocks_.push_back(
            {name, channels_, inner, out, i == 0 ? stride : 1, bottleneck, ibn && layer < 3});
        channels_ = out;
      }
      levels_.push_back({channels_, (layer == 0 ? 4 : levels_.back().stride) * stride});
      ends_.push_back(blocks_.size());
    }
  }

  int64_t channels() const override { return channels_; }
  std::vector<MapLevel> levels() const override { return levels_; }

  TensorSpecs spec() const override {
    TensorSpecs specs;
    add_conv(specs, "conv1", stem_, 3, 7);
    add_batch_norm(specs, "bn1", stem_);
    for (const ResidualBlock& block : blocks_) block.add_spec(specs);
    return specs;
  }

  std::vector<Tensor> maps(const Tensor& images, Weights& weights, const Mode& mode,
                           size_t count) const override {
    LastMaps maps(levels_.size(), count);
    size_t level = 0;
    Tensor x = conv_norm(images, weights.next_normed_conv(), {.stride = 2, .padding = 3}, mode,
                         Activation::kRelu);
    x = at::max_pool2d(x, {3, 3}, {2, 2}, {1, 1}, {1, 1});
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (i == ends_[level]) {
        maps.ended(x);
        ++level;
      }
      x = blocks_[i].forward(x, weights, mode);
    }
    return maps.with(x);
  }

 private:
  int64_t stem_;
  int64_t channels_;
  std::vector<ResidualBlock> blocks_;
  std::vector<MapLevel> levels_;
  std::vector<size_t> ends_;  // of the levels, in blocks
};

}  // namespace

std::unique_ptr<TrunkModel> make_resnet(Description& settings) {
  const std::string stage = settings.choice("stage", "3", {"2", "3", "4"});
  return std::make_unique<ResNet>(ResNet::Settings{
      .depths = settings.name() == "resnet18" ? Depths{2, 2, 2, 2} : Depths{3, 4, 6, 3},
      .stage = std::stoul(stage),
      .bottleneck = settings.name() == "resnet50",
      .ibn = settings.boolean("ibn", false),
      .width = settings.number("width", 1.0, 1.0 / 64, 16),
      .last_stride = settings.choice("last_stride", "2", {"1", "2"}) == "1" ? 1 : 2});
}

}  // namespace placket
