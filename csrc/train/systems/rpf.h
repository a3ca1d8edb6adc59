#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/rpf.h"
#include "train/system.h"

namespace placket {

struct RpfOptions {
  double margin = 0.2;                // of the triplet losses
  double temperature = 0.07;          // of region_patch
  double alpha = 12.0;                // weight of the backgrounds in region_patch
  double contrast_temperature = 0.1;  // of region_contrast and patch_contrast
  double classify_scale = 16.0;       // of region_classify and patch_classify
  double region_weight = 0.3;         // share beta of the region branch in the joint similarity
  double box_threshold = 0.1;         // of the normalised attention map, for the crop
  int64_t patch_size = 224;           // side of the crops
};

// RPF. Losses, by name:
//
//   triplet_region, triplet_patch       mean of cosine_triplet over the batch's triplets
//   region_patch                        region_patch_info_nce over the batch's views
//   region_contrast, patch_contrast     supervised_contrastive within each attribute; region: every
//                                       attribute of every image
//   region_classify, patch_classify     centre_cross_entropy with centres [classes, E] as further
//                                       parameters "region_centres", "patch_centres"
//
// A view is an image under one attribute: in triplet batches each row under the triplet's, in image
// batches views_per_image attributes of each image, drawn without replacement among those with a
// label as long as there are any. One pass of each trunk serves all losses. The contrastive and
// classifying losses are taken over the joined views of all ranks.
// With both branches in use the embedding is [sqrt(beta) region, sqrt(1 - beta) patch].
std::unique_ptr<System> make_rpf_system(
    const RpfConfig& config, const RpfOptions& options,
    const std::map<std::string, at::Tensor>& tensors,  // of rpf_spec
    const std::vector<int64_t>& values,                // [A] number of values of each attribute
    const Preprocess& preprocess, uint64_t seed);      // seed: of the centres' initial values

}  // namespace placket
