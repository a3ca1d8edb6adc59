#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>

#include "models/trunk.h"

namespace placket {

// RPF, "From Region to Patch: Attribute-Aware Foreground-Background Contrastive Learning for
// Fine-Grained Fashion Retrieval" (SIGIR 2023). Shapes: B images, K attributes of each, A
// attributes known, P = h w positions, C channels of the trunk's map, E embedding.
struct RpfConfig {
  int64_t attributes = 8;
  std::string trunk = "resnet50";
  std::string patch_trunk = "vit_base_patch16_224,dropout=0.1";  // empty: region branch only
  int64_t attribute_dim = 512;
  int64_t embedding_dim = 1024;
  int64_t hidden_dim = 512;         // of both MLPs
  int64_t heads = 12;               // of the cross-attention; its width is that of the patch trunk
  double dropout = 0.1;             // of the region branch's MLP and of the cross-attention's MLP
  bool project_background = false;  // the published code leaves the background unprojected
  // Not in the paper. The published head has one projection W of the pooled feature for all
  // attributes, so that the directions which tell one attribute's values apart also move the
  // cosines of the others; with a W for each attribute it can drop them.
  bool project_per_attribute = false;
};

// Names: attribute_embedding.weight [A, attribute_dim]; region.trunk.*, region.head.*;
// patch.trunk.*, patch.head.*.
TensorSpecs rpf_spec(const RpfConfig& config);

// Region-aware head. Specs (without prefix): rpf_region_head_spec. Equations: systems of the
// reference, section 4.1:
//   x = LayerNorm(features), e = LayerNorm(E[a]),
//   attention = softmax_P( sum_c tanh(W e)_c tanh(conv1x1 x)_c / sqrt(attribute_dim) )
//   u = sum attention x, v = sum (1 - attention) x / (P - 1)
//   region = LN(u' + MLP(LN(u'))) with u' = W u; background = LN(v' + MLP(LN(v'))), v' = v (or W v)
// W is weights' pooled_proj: [E, C] and bias [E] as published, or, with project_per_attribute,
// [A, E, C] and bias [A, E], of which attribute a takes the a-th.
// Returns region [B, K, E], background [B, K, E] (undefined tensor unless asked for), attention [B,
// K, h, w]. Registered as placket::rpf_region_head(Tensor features, Tensor attribute_embedding,
// Tensor attributes, Tensor[] weights, float dropout, bool project_background, bool background,
// bool training)
// -> (Tensor, Tensor, Tensor); there an unwanted background is an empty tensor.
TensorSpecs rpf_region_head_spec(const RpfConfig& config);
std::tuple<at::Tensor, at::Tensor, at::Tensor> rpf_region_head(
    const at::Tensor& features,             // [B, C, h, w]
    const at::Tensor& attribute_embedding,  // [A, attribute_dim]
    const at::Tensor& attributes,  // [B, K] int64, or [K]: the same attributes for every image
    at::TensorList weights, double dropout, bool project_background, bool background,
    bool training);

// Patch-aware head: one attribute query over the tokens of its crop (systems of the reference,
// section 4.2). Returns [V, E]. Registered as placket::rpf_patch_head(Tensor features, Tensor
// attribute_embedding, Tensor attributes, Tensor[] weights, int heads, float dropout, bool
// training) -> Tensor.
TensorSpecs rpf_patch_head_spec(const RpfConfig& config);
at::Tensor rpf_patch_head(const at::Tensor& features,             // [V, Cp, h, w] of the crops
                          const at::Tensor& attribute_embedding,  // [A, attribute_dim]
                          const at::Tensor& attributes,           // [V] int64
                          at::TensorList weights, int64_t heads, double dropout, bool training);

}  // namespace placket
