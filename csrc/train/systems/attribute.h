#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/network.h"
#include "train/hooks.h"
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
  double centre_momentum = 0.9;       // of the class centres that the network keeps
  double centre_temperature = 0.1;    // of the losses of assignments to them
  double pseudo_confidence = 0.8;     // of region_pseudo_label
  double region_weight = 0.3;         // share beta of the region branch in the joint similarity
  double box_threshold = 0.1;         // of the normalised attention map, for the crop
  int64_t patch_size = 224;           // side of the crops
};

// Training of a network of attribute-specific retrieval. Losses, by name:
//
//   triplet_region, triplet_patch       mean of cosine_triplet over the batch's triplets
//   region_patch                        region_patch_info_nce over the batch's views
//   region_patch_align                  mean over views of max(0, align_margin - cos(region,
//                                       patch)); with margin 1 a third of ASEN++'s alignment, which
//                                       sums the means of the three roles, and of which an earlier
//                                       version had margin 0.2
//   region_contrast, patch_contrast     supervised_contrastive within each attribute; region: every
//                                       attribute of every image
//   region_classify, patch_classify     centre_cross_entropy with the network's learned centres
//                                       [classes, E] "region.centres", "patch.centres", of which
//                                       zero ones start at random
//   region_prototype, region_centre_triplet, region_pseudo_label, region_consistency
//                                       prototype_cross_entropy, centre_triplet,
//                                       pseudo_label_cross_entropy and assignment_consistency
//                                       (ops/centre_losses.h) of every attribute of every image
//                                       against the network's buffer "class_centres"; consistency
//                                       is between an image's two copies
//
// where the region's head has a class sub-network (ops/class_losses.h),
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
// and those of `extra_losses`, of embeddings as encode() has them (with both branches joined): of
// every attribute that an image has a label of, with the patch branch of the batch's views with a
// label; classes count the values of all attributes in order.
//
// A view is an image under one attribute: in triplet batches each row under the triplet's, in image
// batches views_per_image attributes of each image, drawn without replacement among those with a
// label as long as there are any. One pass of each trunk serves all losses. The contrastive,
// classifying and class losses, and those from outside, are taken over the joined views of all
// ranks. In a stage with one of the losses of ops/centre_losses.h each step's labelled (image,
// attribute) pairs, of all ranks and copies, move the class centres after its losses have used them
// (ops/class_centres.h). An image counts under the first of several values. With both branches in
// use the embedding is [sqrt(beta) region, sqrt(1 - beta) patch].
std::unique_ptr<System> make_attribute_system(
    const NetworkConfig& config, const AttributeOptions& options,
    const std::map<std::string, at::Tensor>& tensors,  // of network_spec
    const std::vector<int64_t>& values,                // [A] number of values of each attribute
    const Preprocess& preprocess, uint64_t seed,       // seed: of the centres' initial values
    const ExtraLosses& extra_losses = {});

}  // namespace placket
