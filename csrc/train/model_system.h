#pragma once

#include <map>
#include <string>
#include <utility>

#include "train/model_tensors.h"
#include "train/system.h"

namespace placket {

// What systems have in common that train a model of a list of tensors.
class ModelSystem : public System {
 public:
  NamedTensors parameters() const override { return tensors_.parameters(); }
  at::Device device() const override { return device_; }
  NamedTensors buffers() const override { return tensors_.buffers(); }
  NamedTensors training_only() const override { return tensors_.training_only(); }

 protected:
  // As ModelTensors's.
  ModelSystem(std::string user, TensorSpecs specs, const std::map<std::string, at::Tensor>& tensors)
      : tensors_(std::move(user), std::move(specs), tensors), device_(tensors_.device()) {}

  ModelTensors tensors_;
  at::Device device_;
};

}  // namespace placket
