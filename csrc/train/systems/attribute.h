#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/network.h"
#include "train/system.h"

namespace placket {

struct AttributeOptions {
  double margin = 0.2;                // of the triplet losses
  double temperature = 0.07;          // of region_patch
  double alpha = 12.0;                // weight of the backgrounds in region_patch
  double contrast_temperature = 0.1;  // of region_contrast and patch_contrast
  double classify_scale = 16.0;       // of region_classify and patch_classify
  double align_margin = 1.0;          // of region_patch_align
  double positive_weight = 10.0;      // w_p of class_recognition
  double centre_momentum = 0.9;       // of the centres of class_centre_triplet
  double region_weight = 0.3;         // share beta of the region branch in the joint similarity
  double box_threshold = 0.1;         // of the normalised attention map, for the crop
  int64_t patch_size = 224;           // side of the crops
};

// Training of a network of attribute-specific retrieval. Losses, by name:
//
//   triplet_region, triplet_patch       mean of cosine_triplet over the batch's triplets
//   region_patch                        region_patch_info_nce over the batch's views
//   region_patch_align                  mean over views of max(0, align_margin - cos(region,
//   patch));
//                                       with margin 1 ASEN++'s alignment, mean(1 - cos), of which
//                                       an earlier version had margin 0.2
//   region_contrast, patch_contrast     supervised_contrastive within each attribute; region: every
//                                       attribute of every image
//   region_classify, patch_classify     centre_cross_entropy with centres [classes, E] as further
//                                       parameters "region_centres", "patch_centres"
//
// and, where the region's head has a class sub-network (train/class_losses.h):
//
//   class_recognition                   all values of every labelled attribute of every image
//   class_cross_entropy                 the first value of the same, for single-label sets
//   class_instance_triplet              the class each image was drawn for (sampler images: that of
//                                       each view) with every image of the batch that carries it
//                                       and every one that carries another value of its attribute
//                                       and not it
//   class_centre_triplet                the same with the centre of the class, the buffer
//                                       "class_centres", for the positive; every step first moves
//                                       the centres of the classes in its batch by centre_momentum
//
// A view is an image under one attribute: in triplet batches each row under the triplet's, in image
// batches views_per_image attributes of each image, drawn without replacement among those with a
// label as long as there are any. One pass of each trunk serves all losses. The contrastive,
// classifying and class losses are taken over the joined views of all ranks.
// With both branches in use the embedding is [sqrt(beta) region, sqrt(1 - beta) patch].
std::unique_ptr<System> make_attribute_system(
    const NetworkConfig& config, const AttributeOptions& options,
    const std::map<std::string, at::Tensor>& tensors,  // of network_spec
    const std::vector<int64_t>& values,                // [A] number of values of each attribute
    const Preprocess& preprocess, uint64_t seed);      // seed: of the centres' initial values

}  // namespace placket
