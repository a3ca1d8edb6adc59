#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "models/tensor_spec.h"
#include "models/trunk.h"

namespace placket {

// The head of MMFL-Net (arXiv 2210.15128), which represents the product in a photo by several
// features: of the whole map, of horizontal stripes of it, and of its details. Public is an
// abstract: bidirectional multi-scale fusion, global, part and local branches, heads for identity
// and attributes. The layers are a reconstruction, ours; product_head.cpp has the equations. It is
// described by one string, "mmfl[,key=value...]":
//
//   map_dim=1024        channels of the map that the branches look at
//   fusion_dim=256      channels of the fused maps of the trunk's last three levels; 0: no fusion,
//                       the trunk's own map is projected
//   embedding_dim=256   E, width of each feature
//   stripes=2/3         the part branch: for each number n a tower with n stripes; 0: no such
//                       branch
//   local=true          whether there is a local branch
//   drop=0.333          share of the rows that the local branch loses in training, the most active
//   attributes=0        M, values of all attributes, each with a logit
//
// The features come in this order: the global one; of each number of stripes the tower's whole map
// and its stripes from top to bottom; the local one. B images, G features.
struct ProductFeature {
  std::string granularity;  // "global", "part" or "local"
  bool whole;               // of a whole map, not of a stripe
};
std::vector<ProductFeature> product_features(const std::string& head);

struct ProductOutput {
  at::Tensor features;    // [B, G, E] before the BNNeck, which distances are taken between
  at::Tensor necks;       // [B, G, E] behind it, which classify and search (Luo et al., "Bag of
                          // Tricks", CVPR Workshops 2019)
  at::Tensor attributes;  // [B, M] logits, M may be 0
};

// How many of the trunk's levels it reads, and its tensors for such a trunk.
int64_t product_head_levels(const std::string& head);
TensorSpecs product_head_spec(const std::string& head, const std::string& trunk);

// Registered as placket::product_head(Tensor[] maps, Tensor(a!)[] weights, str head, str trunk,
// bool training, bool batch_statistics, int groups) -> (Tensor features, Tensor necks, Tensor
// attributes), a composite operator.
ProductOutput product_head(at::TensorList maps,     // of the trunk's last levels, in order
                           at::TensorList weights,  // in the order of product_head_spec
                           const std::string& head, const std::string& trunk, const Mode& mode);

}  // namespace placket
