#pragma once

#include <torch/csrc/utils/pybind.h>

namespace placket {

// The trainer, what it is configured with, systems, and the encoding of whole splits.
void bind_train(pybind11::module_& m);

}  // namespace placket
