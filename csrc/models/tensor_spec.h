#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace placket {

// How a tensor of a model is filled before training.
enum class Initializer {
  kZeros,
  kOnes,
  kNormal,           // N(mean, scale^2)
  kTruncatedNormal,  // N(0, scale^2) cut at two standard deviations of the unit normal times scale
  kKaimingNormal,    // fan out, ReLU gain (He et al., 2015), for convolutions
  kXavierUniform,    // Glorot and Bengio, 2010
  kLinear,           // uniform in +-1/sqrt(fan in), as torch.nn.Linear; scale is the fan in
};

// One tensor of a model. The list of a model's specs, in order, is the order of the weights its
// functions take.
struct TensorSpec {
  std::string name;  // customary dotted name, "layer1.0.conv1.weight"
  std::vector<int64_t> shape;
  Initializer initializer = Initializer::kZeros;
  double scale = 1.0;
  bool buffer = false;  // not trained: BatchNorm's running statistics
  double mean = 0.0;
  // The dimension whose rows belong to one attribute each, in their order, or of centres to one
  // value each; -1: all share the tensor.
  int64_t attribute_axis = -1;
};

using TensorSpecs = std::vector<TensorSpec>;

}  // namespace placket
