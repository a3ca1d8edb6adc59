#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "train/system.h"

namespace placket {

struct RegionTextConfig {
  std::string image = "clip_vit_b_16";  // models/image_tower.h
  std::string text = "clip_text";       // models/text_tower.h
  int64_t category = -1;                // the attribute whose values are categories; -1: none is
};

// The words of M values of all attributes in order, in K variants. A value's prompt may name the
// category of the garment; row C of C categories is for garments whose category is not known.
struct ValuePrompts {
  at::Tensor ids;   // [T, L] int64, token ids of every prompt
  at::Tensor rows;  // [K, C + 1, M] int64 below T
};

// Training of two towers by regions and their words (RaF-CLIP, J. Donghua Univ. (Eng. Ed.) 2024, of
// which the abstract alone is known: losses, prompts and spaces are a reconstruction, ours). With
// unit embeddings x of N regions in each of their views, u of the texts, and the scale s, at most
// 100, the losses by name are, each a mean over the views:
//
//   category_text    symmetric contrastive: of each region against the prompts of all categories in
//                    the batch, each once, and of each of these against the regions, all those of
//                    its category positives
//   attribute_text   mean over regions of -1/|P| sum over P of log softmax of s x . u: P the
//   prompts
//                    of the values that the region carries. It is compared with the prompts of the
//                    batch whose value it is labelled not to carry
//   attribute_absent of the same pairs the sum of log(1 + e^{-+(s x . u + b)}), minus where the
//                    region carries the value, divided by the regions; b is learnt, -s at first
//   view_agreement   mean of 1 - cos of a region's two views; with views "both"
//
// The prompts are those of one variant a step, drawn by the seed; each is encoded once a step. A
// stage's branches are "image" and "text": what is not among them stays as it is. Losses are taken
// over the joined batch of all ranks, whose labels on a device are waited for; with `recompute` > 0
// the image tower keeps the graph of so many images at a time and computes the others again in the
// backward pass (gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under
// Memory Limited Setup", 2021), where no statistics of a batch are taken.
//
// encode() gives rows of word_spaces(), attribute A being the image itself.
std::unique_ptr<System> make_region_text_system(
    const RegionTextConfig& config,
    const std::map<std::string, at::Tensor>& tensors,  // of clip_spec; others are kept with them
    const std::vector<int64_t>& values,                // [A] number of values of each attribute
    const ValuePrompts& prompts);

}  // namespace placket
