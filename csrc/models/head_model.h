#pragma once

#include <memory>

#include "models/description.h"
#include "models/head.h"
#include "models/layers.h"

namespace placket {

struct HeadInput {
  at::Tensor features;    // [B, C, h, w]
  at::Tensor table;       // [A, table_dim], or undefined
  at::Tensor attributes;  // [B, K] or [K] int64
  bool background = false;
};

// What a head's file implements: one description, read once, as a constant object. Input has been
// checked against the header's contract when it arrives.
class HeadModel {
 public:
  virtual ~HeadModel() = default;
  virtual TensorSpecs spec(const HeadSizes& sizes) const = 0;
  virtual size_t tensors() const = 0;  // how many the spec has, whatever the sizes
  virtual int64_t embedding_dim() const = 0;
  virtual int64_t table_dim() const { return 0; }
  virtual bool attends() const { return true; }
  virtual bool has_background() const { return false; }
  virtual std::vector<int64_t> classes() const { return {}; }
  virtual int64_t centre_dim() const { return embedding_dim(); }
  virtual HeadOutput embed(const HeadInput& input, Weights& weights, const Mode& mode) const = 0;
};

std::unique_ptr<HeadModel> make_asen(Description& settings);
std::unique_ptr<HeadModel> make_asen_v2(Description& settings);
std::unique_ptr<HeadModel> make_asen_plus_plus(Description& settings);
std::unique_ptr<HeadModel> make_csn(Description& settings);
std::unique_ptr<HeadModel> make_triplet(Description& settings);
std::unique_ptr<HeadModel> make_rpf_region(Description& settings);
std::unique_ptr<HeadModel> make_rpf_patch(Description& settings);
std::unique_ptr<HeadModel> make_m3net(Description& settings);

}  // namespace placket
