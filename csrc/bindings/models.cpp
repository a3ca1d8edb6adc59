#include "bindings/models.h"

#include <pybind11/stl.h>

#include "models/clip.h"
#include "models/composition.h"
#include "models/image_tower.h"
#include "models/network.h"
#include "models/product_head.h"
#include "models/text_tower.h"
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

// (name, shape, initializer, scale, buffer, mean) of each tensor.
py::list to_python(const TensorSpecs& specs) {
  py::list list;
  for (const TensorSpec& spec : specs) {
    list.append(py::make_tuple(spec.name, py::tuple(py::cast(spec.shape)),
                               initializer_name(spec.initializer), spec.scale, spec.buffer,
                               spec.mean));
  }
  return list;
}

py::tuple to_python(const Normalization& n) {
  return py::make_tuple(py::make_tuple(n.mean[0], n.mean[1], n.mean[2]),
                        py::make_tuple(n.std[0], n.std[1], n.std[2]));
}

}  // namespace

void bind_models(py::module_& m) {
  py::class_<NetworkConfig>(m, "NetworkConfig")
      .def(py::init<>())
      .def_readwrite("attributes", &NetworkConfig::attributes)
      .def_readwrite("trunk", &NetworkConfig::trunk)
      .def_readwrite("head", &NetworkConfig::head)
      .def_readwrite("patch_trunk", &NetworkConfig::patch_trunk)
      .def_readwrite("patch_head", &NetworkConfig::patch_head)
      .def_readwrite("classes", &NetworkConfig::classes)
      .def_readwrite("learned_classes", &NetworkConfig::learned_classes);
  m.def(
      "network_spec", [](const NetworkConfig& config) { return to_python(network_spec(config)); },
      py::arg("config"));
  m.def(
      "composition_spec",
      [](const std::string& composition, int64_t dims) {
        return to_python(composition_spec(composition, dims));
      },
      py::arg("composition"), py::arg("dims"));
  m.def("head_embedding_dim", &head_embedding_dim, py::arg("head"));
  m.def("head_attends", &head_attends, py::arg("head"));
  m.def("head_classes", &head_classes, py::arg("head"));
  m.def(
      "product_head_spec",
      [](const std::string& head, const std::string& trunk) {
        return to_python(product_head_spec(head, trunk));
      },
      py::arg("head"), py::arg("trunk"));
  m.def("product_head_levels", &product_head_levels, py::arg("head"));
  m.def(
      "product_features",
      [](const std::string& head) {
        std::vector<std::pair<std::string, bool>> features;
        for (const auto& [granularity, whole] : product_features(head)) {
          features.emplace_back(granularity, whole);
        }
        return features;
      },
      py::arg("head"));
  m.def(
      "trunk_spec", [](const std::string& trunk) { return to_python(trunk_spec(trunk)); },
      py::arg("trunk"));
  m.def("trunk_channels", &trunk_channels, py::arg("trunk"));
  m.def(
      "trunk_normalization",
      [](const std::string& trunk) { return to_python(trunk_normalization(trunk)); },
      py::arg("trunk"));
  m.def(
      "clip_spec",
      [](const std::string& image, const std::string& text) {
        return to_python(clip_spec(image, text));
      },
      py::arg("image"), py::arg("text"));
  m.def("image_tower_embedding_dim", &image_tower_embedding_dim, py::arg("tower"));
  m.def(
      "image_tower_normalization",
      [](const std::string& tower) { return to_python(image_tower_normalization(tower)); },
      py::arg("tower"));
  m.def("image_tower_size", &image_tower_size, py::arg("tower"));
  m.def(
      "image_tower_spec",
      [](const std::string& tower) { return to_python(image_tower_spec(tower)); },
      py::arg("tower"));
  m.def("text_tower_context", &text_tower_context, py::arg("tower"));
  m.def("text_tower_embedding_dim", &text_tower_embedding_dim, py::arg("tower"));
  m.def(
      "text_tower_spec", [](const std::string& tower) { return to_python(text_tower_spec(tower)); },
      py::arg("tower"));
  m.def("text_tower_vocabulary", &text_tower_vocabulary, py::arg("tower"));
}

}  // namespace placket
