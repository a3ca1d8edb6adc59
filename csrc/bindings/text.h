#pragma once

#include <torch/csrc/utils/pybind.h>

namespace placket {

void bind_text(pybind11::module_& m);

}  // namespace placket
