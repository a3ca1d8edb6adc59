#include "train/model_tensors.h"

#include <algorithm>

#include "train/system.h"

namespace placket {

ModelTensors::ModelTensors(std::string user, TensorSpecs specs,
                           const std::map<std::string, at::Tensor>& tensors)
    : user_(std::move(user)), specs_(std::move(specs)) {
  for (const TensorSpec& spec : specs_) {
    const auto found = tensors.find(spec.name);
    TORCH_CHECK_VALUE(found != tensors.end(), user_, ": no tensor named '", spec.name, "' among ",
                      tensors.size(), " given");
    TORCH_CHECK_VALUE(found->second.sizes() == at::IntArrayRef(spec.shape), user_, ": '", spec.name,
                      "' must have shape ", at::IntArrayRef(spec.shape), ", got ",
                      found->second.sizes());
    (spec.buffer ? buffers_ : parameters_).emplace_back(spec.name, found->second);
    all_[spec.name] = found->second;
  }
}

void ModelTensors::add_buffer(const std::string& name, const at::Tensor& tensor) {
  buffers_.emplace_back(name, tensor);
  all_[name] = tensor;
}

void ModelTensors::add_training_only(const std::string& name, const at::Tensor& tensor) {
  training_only_.emplace_back(name, tensor);
}

NamedTensors ModelTensors::parameters() const {
  NamedTensors all = parameters_;
  all.insert(all.end(), training_only_.begin(), training_only_.end());
  return all;
}

NamedTensors ModelTensors::begin(const std::vector<std::pair<std::string, double>>& rates,
                                 const std::function<bool(const std::string&)>& learns) {
  const NamedTensors all = parameters();
  NamedTensors trained;
  std::copy_if(all.begin(), all.end(), std::back_inserter(trained),
               [&](const auto& named) { return learns(named.first); });
  NamedTensors learning;
  for (const auto& [rate, group] : rate_groups(rates, trained, all)) {
    if (rate > 0) learning.insert(learning.end(), group.begin(), group.end());
  }
  frozen_.clear();
  for (const auto& [name, tensor] : all) {
    const bool moves = std::any_of(learning.begin(), learning.end(),
                                   [&n = name](const auto& named) { return named.first == n; });
    if (!moves) frozen_.push_back(name);
  }
  return learning;
}

std::vector<at::Tensor> ModelTensors::weights(const std::string& prefix,
                                              const TensorSpecs& part) const {
  std::vector<at::Tensor> out;
  for (const TensorSpec& spec : part) {
    const std::string name = prefix + spec.name;
    const bool frozen = std::find(frozen_.begin(), frozen_.end(), name) != frozen_.end();
    out.push_back(frozen ? all_.at(name).detach() : all_.at(name));
  }
  return out;
}

}  // namespace placket
