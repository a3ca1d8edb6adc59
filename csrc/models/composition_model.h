#pragma once

#include <memory>

#include "models/composition.h"
#include "models/description.h"
#include "models/layers.h"

namespace placket {

// What a composition's file implements: one description, read once, as a constant object. Input has
// been checked against the header's contract and scaled when it arrives.
class CompositionModel {
 public:
  virtual ~CompositionModel() = default;
  virtual TensorSpecs spec(int64_t dims) const = 0;
  virtual size_t tensors() const = 0;  // how many the spec has, whatever D
  virtual CompositionOutput compose(const CompositionInput& input, Weights& weights,
                                    bool training) const = 0;
};

std::unique_ptr<CompositionModel> make_agcn(Description& settings);
std::unique_ptr<CompositionModel> make_tirg(Description& settings);
std::unique_ptr<CompositionModel> make_combiner(Description& settings);
std::unique_ptr<CompositionModel> make_sum(Description& settings);
std::unique_ptr<CompositionModel> make_image_only(Description& settings);
std::unique_ptr<CompositionModel> make_text_only(Description& settings);

// Rows [..., D] with a norm of 1; a zero row stays zero. In their own dtype.
at::Tensor unit_length(const at::Tensor& rows);

// The output for a query of these two parts [N, D], and of a third where one is defined.
CompositionOutput query_of(const at::Tensor& image_part, const at::Tensor& text_part,
                           const at::Tensor& joint_part = {});

}  // namespace placket
