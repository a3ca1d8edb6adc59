#pragma once

#include <torch/csrc/utils/pybind.h>

namespace placket {

// RpfConfig and the specs of trunks and models: what Python needs to own their parameters.
void bind_models(pybind11::module_& m);

}  // namespace placket
