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
  virtual std::vector<MapLevel> levels() const { return {{channels(), 0}}; }
  // The maps of the last `count` of its levels, of which the last one is the trunk's own.
  virtual std::vector<at::Tensor> maps(const at::Tensor& images, Weights& weights, const Mode& mode,
                                       size_t count) const = 0;
  virtual Normalization normalization() const {
    return {{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};  // ImageNet's
  }
};

// The maps that maps() returns, in the making.
class LastMaps {
 public:
  LastMaps(size_t levels, size_t count) : skipped_(levels - count) {}

  // The map of the next level but the last; it is let go where it is not wanted.
  void ended(const at::Tensor& map) {
    if (level_++ >= skipped_) maps_.push_back(map);
  }
  std::vector<at::Tensor> with(const at::Tensor& last) {
    maps_.push_back(last);
    return std::move(maps_);
  }

 private:
  size_t skipped_;
  size_t level_ = 0;
  std::vector<at::Tensor> maps_;
};

std::unique_ptr<TrunkModel> make_resnet(Description& settings);
std::unique_ptr<TrunkModel> make_squeezenet(Description& settings);
std::unique_ptr<TrunkModel> make_efficientnet_lite(Description& settings);
std::unique_ptr<TrunkModel> make_vit(Description& settings);

}  // namespace placket
