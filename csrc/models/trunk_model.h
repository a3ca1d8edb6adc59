#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

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

// A trunk's description taken apart. Each question names a key, so that what was never asked for is
// an unknown key; errors are ValueError.
class TrunkSettings {
 public:
  explicit TrunkSettings(std::string description);

  const std::string& name() const { return name_; }
  int64_t integer(const std::string& key, int64_t fallback, int64_t minimum);
  double number(const std::string& key, double fallback, double minimum, double maximum);
  std::string choice(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& choices);
  void refuse_unknown_keys() const;

  // Throws "trunk: <what> must <condition>, got <value> in '<description>'".
  [[noreturn]] void fail(const std::string& what, const std::string& condition,
                         const std::string& value) const;

 private:
  const std::string* find(const std::string& key);

  std::string description_;
  std::string name_;
  std::vector<std::pair<std::string, std::string>> given_;
  std::vector<std::string> asked_;
};

std::unique_ptr<TrunkModel> make_resnet(TrunkSettings& settings);
std::unique_ptr<TrunkModel> make_squeezenet(TrunkSettings& settings);
std::unique_ptr<TrunkModel> make_efficientnet_lite(TrunkSettings& settings);
std::unique_ptr<TrunkModel> make_vit(TrunkSettings& settings);

}  // namespace placket
