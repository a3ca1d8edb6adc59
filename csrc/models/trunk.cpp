#include "models/trunk.h"

#include <torch/library.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "base/checks.h"
#include "models/trunk_model.h"

namespace placket {

using at::Tensor;

namespace {

// A trunk that the caller computes (any module that gives [B, C, h, w]): it has a name and a number
// of channels here, and no weights.
class ModuleTrunk : public TrunkModel {
 public:
  explicit ModuleTrunk(Description& settings) : channels_(settings.integer("channels", 0, 1)) {}

  TensorSpecs spec() const override { return {}; }
  int64_t channels() const override { return channels_; }
  std::vector<Tensor> maps(const Tensor&, Weights&, const Mode&, size_t) const override {
    TORCH_CHECK_VALUE(false,
                      "trunk_features: trunk must be one of the built-in ones, got 'module', "
                      "which the caller computes");
  }

 private:
  int64_t channels_;
};

std::unique_ptr<TrunkModel> make_module_trunk(Description& settings) {
  return std::make_unique<ModuleTrunk>(settings);
}

struct TrunkKind {
  const char* name;    // as an error lists it
  const char* prefix;  // of the names it answers to; the name itself where null
  std::unique_ptr<TrunkModel> (*make)(Description&);
};

constexpr TrunkKind kTrunks[] = {
    {"resnet18", nullptr, make_resnet},
    {"resnet34", nullptr, make_resnet},
    {"resnet50", nullptr, make_resnet},
    {"squeezenet1_0", nullptr, make_squeezenet},
    {"efficientnet_lite0", nullptr, make_efficientnet_lite},
    {"vit_{tiny,small,base,large}_patchP_R", "vit_", make_vit},
    {"vit", nullptr, make_vit},
    {"module", nullptr, make_module_trunk},
};

struct Trunk {
  std::unique_ptr<const TrunkModel> model;
  size_t tensors;  // in its spec
};

const TrunkKind* find_kind(const std::string& name) {
  const auto answers = [&](const TrunkKind& kind) {
    return kind.prefix != nullptr ? name.starts_with(kind.prefix) : name == kind.name;
  };
  const TrunkKind* found = std::find_if(std::begin(kTrunks), std::end(kTrunks), answers);
  return found != std::end(kTrunks) ? found : nullptr;
}

Trunk make_trunk(const std::string& description) {
  Description settings("trunk", description);
  const TrunkKind* kind = find_kind(settings.name());
  if (kind == nullptr) {
    std::vector<std::string> names;
    for (const TrunkKind& known : kTrunks) names.emplace_back(known.name);
    settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
  }
  std::unique_ptr<TrunkModel> model = kind->make(settings);
  settings.refuse_unknown_keys();
  const size_t tensors = model->spec().size();
  return {std::move(model), tensors};
}

const Trunk& find_trunk(const std::string& description) {
  return read_once(description, make_trunk);
}

std::vector<Tensor> trunk_maps_op(const Tensor& images, at::TensorList weights,
                                  std::string_view trunk, int64_t count, bool training,
                                  bool batch_statistics, int64_t groups) {
  return trunk_maps(images, weights, std::string(trunk), count,
                    {training, batch_statistics, groups});
}

Tensor trunk_features_op(const Tensor& images, at::TensorList weights, std::string_view trunk,
                         bool training, bool batch_statistics, int64_t groups) {
  return trunk_features(images, weights, std::string(trunk), {training, batch_statistics, groups});
}

std::vector<Tensor> run_trunk(const char* op, const Tensor& images, at::TensorList weights,
                              const std::string& trunk, int64_t count, const Mode& mode) {
  const Trunk& found = find_trunk(trunk);
  check_images(op, images, mode);
  const auto levels = int64_t(found.model->levels().size());
  TORCH_CHECK_VALUE(count >= 1 && count <= levels, op, ": count must be from 1 to the ", levels,
                    " maps of '", trunk, "', got ", count);
  Weights cursor(op, weights, found.tensors);
  // Convolutions and BatchNorm are fastest in this layout, on CPU and GPU.
  return found.model->maps(images.contiguous(at::MemoryFormat::ChannelsLast), cursor, mode,
                           size_t(count));
}

}  // namespace

bool is_trunk(const std::string& name) {
  const TrunkKind* kind = find_kind(name);
  return kind != nullptr && kind->make != make_module_trunk;
}

std::vector<std::string> trunk_names() {
  std::vector<std::string> names;
  for (const TrunkKind& kind : kTrunks) {
    if (kind.make != make_module_trunk) names.emplace_back(kind.name);
  }
  return names;
}

TensorSpecs trunk_spec(const std::string& trunk) { return find_trunk(trunk).model->spec(); }

int64_t trunk_channels(const std::string& trunk) { return find_trunk(trunk).model->channels(); }

std::vector<MapLevel> trunk_levels(const std::string& trunk) {
  return find_trunk(trunk).model->levels();
}

Normalization trunk_normalization(const std::string& trunk) {
  return find_trunk(trunk).model->normalization();
}

void check_images(const char* op, const Tensor& images, const Mode& mode) {
  TORCH_CHECK_VALUE(images.dim() == 4 && images.sym_size(1) == 3, op,
                    ": images must have shape [B, 3, H, W], got ", images.sym_sizes());
  TORCH_CHECK_VALUE(mode.groups >= 1, op, ": groups must be at least 1, got ", mode.groups);
  if (mode.batch_statistics && mode.groups > 1) {
    TORCH_CHECK_VALUE(images.sym_size(0) % mode.groups == 0, op,
                      ": images must come in a multiple of groups = ", mode.groups, ", got ",
                      images.sym_size(0));
  }
}

Tensor trunk_features(const Tensor& images, at::TensorList weights, const std::string& trunk,
                      const Mode& mode) {
  return run_trunk("trunk_features", images, weights, trunk, 1, mode).front();
}

std::vector<Tensor> trunk_maps(const Tensor& images, at::TensorList weights,
                               const std::string& trunk, int64_t count, const Mode& mode) {
  return run_trunk("trunk_maps", images, weights, trunk, count, mode);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "trunk_features(Tensor images, Tensor(a!)[] weights, str trunk, bool training=False, "
      "bool batch_statistics=False, int groups=1) -> Tensor",
      trunk_features_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "trunk_maps(Tensor images, Tensor(a!)[] weights, str trunk, int count, bool training=False, "
      "bool batch_statistics=False, int groups=1) -> Tensor[]",
      trunk_maps_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
