#include "bindings/models.h"

#include <pybind11/stl.h>

#include "models/rpf.h"
#include "models/trunk.h"

namespace placket {

namespace py = pybind11;

namespace {

const char* initializer_name(Initializer initializer) {
  switch (initializer) {
    case Initializer::kZeros:
      return "zeros";
    case Initializer::kOnes:
      return "ones";
    case Initializer::kNormal:
      return "normal";
    case Initializer::kTruncatedNormal:
      return "truncated_normal";
    case Initializer::kKaimingNormal:
      return "kaiming_normal";
    case Initializer::kXavierUniform:
      return "xavier_uniform";
    case Initializer::kLinear:
      return "linear";
  }
  TORCH_INTERNAL_ASSERT(false, "unnamed initializer");
}

// (name, shape, initializer, scale, buffer) of each tensor.
py::list to_python(const TensorSpecs& specs) {
  py::list list;
  for (const TensorSpec& spec : specs) {
    list.append(py::make_tuple(spec.name, py::tuple(py::cast(spec.shape)),
                               initializer_name(spec.initializer), spec.scale, spec.buffer));
  }
  return list;
}

}  // namespace

void bind_models(py::module_& m) {
  py::class_<RpfConfig>(m, "RpfConfig")
      .def(py::init<>())
      .def_readwrite("attributes", &RpfConfig::attributes)
      .def_readwrite("trunk", &RpfConfig::trunk)
      .def_readwrite("patch_trunk", &RpfConfig::patch_trunk)
      .def_readwrite("attribute_dim", &RpfConfig::attribute_dim)
      .def_readwrite("embedding_dim", &RpfConfig::embedding_dim)
      .def_readwrite("hidden_dim", &RpfConfig::hidden_dim)
      .def_readwrite("heads", &RpfConfig::heads)
      .def_readwrite("dropout", &RpfConfig::dropout)
      .def_readwrite("project_background", &RpfConfig::project_background)
      .def_readwrite("project_per_attribute", &RpfConfig::project_per_attribute);
  m.def(
      "rpf_spec", [](const RpfConfig& config) { return to_python(rpf_spec(config)); },
      py::arg("config"));
  m.def(
      "trunk_spec", [](const std::string& trunk) { return to_python(trunk_spec(trunk)); },
      py::arg("trunk"));
  m.def("trunk_channels", &trunk_channels, py::arg("trunk"));
  m.def(
      "trunk_normalization",
      [](const std::string& trunk) {
        const Normalization n = trunk_normalization(trunk);
        return py::make_tuple(py::make_tuple(n.mean[0], n.mean[1], n.mean[2]),
                              py::make_tuple(n.std[0], n.std[1], n.std[2]));
      },
      py::arg("trunk"));
}

}  // namespace placket
