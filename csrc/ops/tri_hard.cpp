#include "ops/tri_hard.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/batch_hard.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

namespace {

// The least square of a distance, whose root has a gradient.
constexpr double kLeastSquare = 1e-12;

// Of rows and those at `places`; of any value where a place is below 0.
Tensor distances(const Tensor& rows, const Tensor& places) {
  const Tensor others = rows.index_select(0, places.clamp_min(0));
  return (rows - others).square().sum(1).clamp_min(kLeastSquare).sqrt();
}

Tensor mean_where(const Tensor& values, const Tensor& counted) {
  return values.where(counted, 0).sum() / counted.sum().clamp_min(1);
}

}  // namespace

std::tuple<Tensor, Tensor> tri_hard(const Tensor& embeddings, const Tensor& labels,
                                    const std::optional<Tensor>& domains,
                                    std::optional<double> margin) {
  const Tensor rows = unit_rows(embeddings);
  const auto [positive, negative, farthest, nearest] =
      batch_hard(rows.detach(), labels, std::nullopt, /*semi_hard=*/false, domains);
  const Tensor has_positive = positive.ge(0);
  const Tensor to_positive = distances(rows, positive);
  const Tensor excess = to_positive - distances(rows, negative);
  const Tensor terms = margin ? (excess + *margin).clamp_min(0) : at::softplus(excess);
  return {mean_where(terms, has_positive & negative.ge(0)), mean_where(to_positive, has_positive)};
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "tri_hard(Tensor embeddings, Tensor labels, Tensor? domains=None, float? margin=None) -> "
      "(Tensor triplet, Tensor positive_distance)",
      tri_hard, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
