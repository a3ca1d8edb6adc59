#pragma once

#include <torch/csrc/utils/pybind.h>

namespace placket {

void bind_images(pybind11::module_& m);

}  // namespace placket
