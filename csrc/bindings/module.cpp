#include <torch/csrc/utils/pybind.h>

// Operators register themselves with torch when the module is loaded; what has a life of its own is
// bound here.
PYBIND11_MODULE(_C, m) { m.doc() = "placket's C++ core; its operators are torch.ops.placket.*"; }
