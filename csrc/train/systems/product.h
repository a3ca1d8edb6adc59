#pragma once

#include <map>
#include <memory>
#include <string>

#include "train/system.h"

namespace placket {

struct ProductOptions {
  double margin = 0.3;           // of the triplet losses
  bool soft_margin = false;      // log(1 + e^x) in place of the hinge with a margin
  double label_smoothing = 0.1;  // of identity
  double centre_rate = 0.5;      // of the centres
  double positive_weight = 1.0;  // of the values that an image carries, in attribute
};

struct ProductConfig {
  std::string trunk = "resnet50,stage=4,last_stride=1";
  std::string head;      // models/product_head.h
  int64_t products = 0;  // in training; 0: for encoding alone
  int64_t domains = 1;   // in training: 2 where photos are of shops and of consumers
};

// Training of a network that represents products (MMFL-Net, arXiv 2210.15128, of which the abstract
// alone is known: the forms of the losses are a reconstruction, ours). Labels of a batch have two
// attributes behind the model's own: the product and the domain. With the features f and necks g of
// models/product_head.h the losses by name are
//
//   identity              mean over features of the cross-entropy of g against a classifier of
//                         products of its own, with label smoothing
//   triplet_hard          mean over the features of whole maps of tri_hard (ops/tri_hard.h) of f
//   triplet_cross_domain  the same with both partners in the other domain: of consumers' photos in
//                         the shops' and the other way round
//   positive_distance     the absolute term of the latter, of the former with photos of one domain
//   centre                mean over the features of whole maps of |f - c|^2 / 2, c the centre of
//                         the product; then the centres of the batch's products, and no others,
//                         move by centre_rate sum_i (f_i - c) / (1 + n) (Wen et al., ECCV 2016,
//                         equation 4). They start at zero
//   attribute             class_recognition (ops/class_losses.h) of the attributes' logits: an
//                         attribute without a label takes no part
//
// A row without a product takes part in the attributes alone. All losses are taken over the joined
// batch of all ranks. encode() knows one attribute, 0: the necks of an image joined to one unit
// vector.
std::unique_ptr<System> make_product_system(
    const ProductConfig& config, const ProductOptions& options,
    const std::map<std::string, at::Tensor>& tensors,  // "trunk.*" and "head.*"
    const std::vector<int64_t>& values,                // [A] number of values of each attribute
    uint64_t seed);                                    // of the classifiers' initial values

}  // namespace placket
