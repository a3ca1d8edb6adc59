#include <torch/csrc/utils/pybind.h>

#include "bindings/checksums.h"
#include "bindings/data.h"
#include "bindings/images.h"
#include "bindings/models.h"
#include "bindings/text.h"
#include "bindings/train.h"

// Operators register themselves with torch when the module is loaded; what has a life of its own is
// bound here.
PYBIND11_MODULE(_C, m) {
  m.doc() = "placket's C++ core; its operators are torch.ops.placket.*";
  placket::bind_checksums(m);
  placket::bind_images(m);
  placket::bind_data(m);
  placket::bind_models(m);
  placket::bind_text(m);
  placket::bind_train(m);
}
