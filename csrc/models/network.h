#pragma once

#include <string>

#include "models/head.h"
#include "models/trunk.h"

namespace placket {

// The networks of attribute-specific retrieval: a region branch (ASEN++: global), whose head embeds
// the whole image under an attribute, and maybe a patch branch (ASEN++: local), whose trunk sees
// the crop that the first one's attention gives.
struct NetworkConfig {
  int64_t attributes = 8;  // A
  std::string trunk = "resnet50";
  std::string head = "rpf_region";
  std::string patch_trunk;  // empty: region branch only
  std::string patch_head;
  int64_t classes = 0;  // values of all attributes, of which class centres are kept; 0: none are
  int64_t learned_classes = 0;  // the same number, of which each branch learns a centre; 0: none do
};

// Names: attribute_embedding.weight [A, table_dim] where a head reads it; region.trunk.*,
// region.head.*; patch.trunk.*, patch.head.*; region.centres and patch.centres [learned_classes,
// E], zero until a classifying loss learns them; and the buffer class_centres, a row for each class
// of a network that keeps them or whose region head has a class sub-network, unit vectors of the
// space of head_centre_dim or zero for a class that was never seen (ops/class_centres.h). Both
// heads read the same table; what does not fit is a ValueError.
TensorSpecs network_spec(const NetworkConfig& config);

}  // namespace placket
