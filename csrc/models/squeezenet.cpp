#include <ATen/ATen.h>

#include "models/trunk_model.h"

// "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters" (Iandola et al., 2016), version
// 1.0 without its classifier; the names are torchvision's. `stage` is the stride of the map after
// which it is cut.
namespace placket {

using at::Tensor;

namespace {

struct Fire {
  int64_t index;  // in torchvision's `features`
  int64_t in, squeeze, expand;
  bool pool;  // a pooling stands before it
};

constexpr Fire kFires[] = {
    {3, 96, 16, 64, true},     {4, 128, 16, 64, false},  {5, 128, 32, 128, false},
    {7, 256, 32, 128, true},   {8, 256, 48, 192, false}, {9, 384, 48, 192, false},
    {10, 384, 64, 256, false}, {12, 512, 64, 256, true},
};

class SqueezeNet : public TrunkModel {
 public:
  explicit SqueezeNet(int64_t stage) {
    int64_t stride = 2;
    for (const Fire& fire : kFires) {
      if (fire.pool) stride *= 2;
      if (stride <= stage) fires_.push_back(fire);
    }
  }

  int64_t channels() const override { return 2 * fires_.back().expand; }

  std::vector<MapLevel> levels() const override {
    std::vector<MapLevel> levels = {{96, 2}};
    for (const Fire& fire : fires_) {
      if (fire.pool) levels.push_back({0, 2 * levels.back().stride});
      levels.back().channels = 2 * fire.expand;
    }
    return levels;
  }

  TensorSpecs spec() const override {
    TensorSpecs specs;
    add_conv(specs, "features.0", 96, 3, 7, {.bias = true});
    for (const Fire& fire : fires_) {
      const std::string name = "features." + std::to_string(fire.index);
      add_conv(specs, name + ".squeeze", fire.squeeze, fire.in, 1, {.bias = true});
      add_conv(specs, name + ".expand1x1", fire.expand, fire.squeeze, 1, {.bias = true});
      add_conv(specs, name + ".expand3x3", fire.expand, fire.squeeze, 3, {.bias = true});
    }
    return specs;
  }

  std::vector<Tensor> maps(const Tensor& images, Weights& weights, const Mode&,
                           size_t count) const override {
    LastMaps maps(levels().size(), count);
    Tensor x = conv2d(images, weights, {.stride = 2, .bias = true}).relu_();
    for (const Fire& fire : fires_) {
      if (fire.pool) maps.ended(x);
      if (fire.pool) x = at::max_pool2d(x, {3, 3}, {2, 2}, {0, 0}, {1, 1}, /*ceil_mode=*/true);
      const Tensor squeezed = conv2d(x, weights, {.bias = true}).relu_();
      const Tensor one = conv2d(squeezed, weights, {.bias = true});
      const Tensor three = conv2d(squeezed, weights, {.padding = 1, .bias = true});
      x = at::cat({one, three}, 1).relu_();
    }
    return maps.with(x);
  }

 private:
  std::vector<Fire> fires_;
};

}  // namespace

std::unique_ptr<TrunkModel> make_squeezenet(Description& settings) {
  return std::make_unique<SqueezeNet>(std::stoll(settings.choice("stage", "16", {"4", "8", "16"})));
}

}  // namespace placket
