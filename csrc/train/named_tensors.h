#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

namespace placket {

// Tensors by name, in an order that is the same in every run. Those of a model are the Python
// module's own: a change on one side is seen on the other.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

}  // namespace placket
