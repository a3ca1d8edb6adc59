#include "models/network.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "models/layers.h"

namespace placket {
namespace {

void check(const NetworkConfig& config) {
  TORCH_CHECK_VALUE(config.attributes >= 1, "network: attributes must be at least 1, got ",
                    config.attributes);
  TORCH_CHECK_VALUE(config.classes >= 0, "network: classes must be at least 0, got ",
                    config.classes);
  TORCH_CHECK_VALUE(config.learned_classes >= 0,
                    "network: learned_classes must be at least 0, got ", config.learned_classes);
  TORCH_CHECK_VALUE(config.patch_trunk.empty() == config.patch_head.empty(),
                    "network: patch_trunk and patch_head must be given together, got '",
                    config.patch_trunk, "' and '", config.patch_head, "'");
  if (config.patch_trunk.empty()) return;
  TORCH_CHECK_VALUE(head_attends(config.head),
                    "network: head must attend to positions for a patch branch to look at, got '",
                    config.head, "'");
  const int64_t region = head_table_dim(config.head);
  const int64_t patch = head_table_dim(config.patch_head);
  TORCH_CHECK_VALUE(region == 0 || patch == 0 || region == patch,
                    "network: both heads must read a table of the same width, got ", region,
                    " and ", patch);
}

}  // namespace

TensorSpecs network_spec(const NetworkConfig& config) {
  check(config);
  int64_t table = head_table_dim(config.head);
  if (!config.patch_head.empty()) table = std::max(table, head_table_dim(config.patch_head));
  TensorSpecs specs;
  if (table > 0) {
    specs.push_back(
        {"attribute_embedding.weight", {config.attributes, table}, Initializer::kNormal});
    specs.back().attribute_axis = 0;
  }
  const auto add_branch = [&](const std::string& name, const std::string& trunk,
                              const std::string& head) {
    add_specs(specs, name + ".trunk.", trunk_spec(trunk));
    add_specs(specs, name + ".head.", head_spec(head, {trunk_channels(trunk), config.attributes}));
    if (config.learned_classes > 0) {
      specs.push_back({name + ".centres", {config.learned_classes, head_embedding_dim(head)}});
      specs.back().attribute_axis = 0;
    }
  };
  add_branch("region", config.trunk, config.head);
  if (!config.patch_trunk.empty()) add_branch("patch", config.patch_trunk, config.patch_head);
  const std::vector<int64_t> own = head_classes(config.head);
  const int64_t classes =
      own.empty() ? config.classes : std::accumulate(own.begin(), own.end(), int64_t{0});
  if (classes > 0) {
    specs.push_back({"class_centres",
                     {classes, head_centre_dim(config.head)},
                     Initializer::kZeros,
                     1.0,
                     /*buffer=*/true});
  }
  return specs;
}

}  // namespace placket
