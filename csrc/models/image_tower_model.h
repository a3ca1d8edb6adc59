#pragma once

#include <memory>

#include "models/description.h"
#include "models/image_tower.h"
#include "models/layers.h"

namespace placket {

// What an image tower's file implements: one description, read once, as a constant object.
class ImageTowerModel {
 public:
  virtual ~ImageTowerModel() = default;
  virtual TensorSpecs spec() const = 0;
  virtual int64_t embedding_dim() const = 0;
  virtual int64_t image_size() const = 0;
  virtual ImageTowerOutput embed(const at::Tensor& images, Weights& weights, bool tokens,
                                 const Mode& mode) const = 0;
  virtual Normalization normalization() const {
    return {{0.48145466, 0.4578275, 0.40821073}, {0.26862954, 0.26130258, 0.27577711}};  // CLIP's
  }
};

std::unique_ptr<ImageTowerModel> make_clip_vit(Description& settings);
std::unique_ptr<ImageTowerModel> make_clip_resnet(Description& settings);

}  // namespace placket
