#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "models/tensor_spec.h"
#include "train/named_tensors.h"

namespace placket {

// The tensors of a model in training: which of them learn in a stage, and the lists of weights that
// the model's functions take. The tensors are the Python module's own.
class ModelTensors {
 public:
  // `user` opens the messages: a tensor that is absent or of another shape is a ValueError.
  ModelTensors(std::string user, TensorSpecs specs,
               const std::map<std::string, at::Tensor>& tensors);

  // A tensor that is kept with the model and that training does not know.
  void add_buffer(const std::string& name, const at::Tensor& tensor);
  // A parameter that training has and the model has not.
  void add_training_only(const std::string& name, const at::Tensor& tensor);

  NamedTensors parameters() const;  // the model's, then those of training only
  const NamedTensors& buffers() const { return buffers_; }
  const NamedTensors& training_only() const { return training_only_; }
  const TensorSpecs& specs() const { return specs_; }
  // Whether the model has a tensor of this name.
  bool contains(const std::string& name) const { return all_.contains(name); }
  const at::Tensor& at(const std::string& name) const { return all_.at(name); }
  at::Device device() const { return parameters_.front().second.device(); }

  // Lets the parameters learn that `learns` and have a rate other than 0, and returns them.
  NamedTensors begin(const std::vector<std::pair<std::string, double>>& rates,
                     const std::function<bool(const std::string&)>& learns);
  // Lets all of them have gradients, as before any stage.
  void begin_encoding() { frozen_.clear(); }

  // The tensors of a part of the model, in the order of its specs; without a gradient where they do
  // not learn.
  std::vector<at::Tensor> weights(const std::string& prefix, const TensorSpecs& part) const;

 private:
  std::string user_;
  TensorSpecs specs_;
  NamedTensors parameters_, buffers_, training_only_;
  std::map<std::string, at::Tensor> all_;  // of the model
  std::vector<std::string> frozen_;        // parameters that do not learn
};

}  // namespace placket
