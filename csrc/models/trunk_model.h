#pragma once

#include <memory>

#include "models/description.h"
#include "models/layers.h"
#include "models/trunk.h"

namespace placket {

// What a trunk's file implements: one description, read once, as a constant object.
class TrunkModel {
 public:
  virtual ~TrunkModel() = default;
  virtual TensorSpecs spec() const = 0;
  virtual int64_t channels() const = 0;
  virtual at::Tensor features(const at::Tensor& images, Weights& weights,
                              const Mode& mode) const = 0;
  virtual Normalization normalization() const {
    return {{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};  // ImageNet's
  }
};

std::unique_ptr<TrunkModel> make_resnet(Description& settings);
std::unique_ptr<TrunkModel> make_squeezenet(Description& settings);
std::unique_ptr<TrunkModel> make_efficientnet_lite(Description& settings);
std::unique_ptr<TrunkModel> make_vit(Description& settings);

}  // namespace placket
