#include "train/losses.h"

#include <ATen/ATen.h>

#include "ops/autocast.h"

namespace placket {

using at::Tensor;

Tensor unit_rows(const Tensor& rows) {
  const Tensor x = at_least_float32(rows);
  return x / x.norm(2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

namespace {

// Finite, so that a row with nothing left has a zero gradient and not NaN.
constexpr double kMasked = -1e30;

Tensor mean_of(const Tensor& values, const Tensor& counted) {
  return values.where(counted, 0).sum() / counted.sum().clamp_min(1);
}

}  // namespace

Tensor supervised_contrastive(const Tensor& embeddings, const Tensor& groups, const Tensor& labels,
                              double temperature) {
  const Tensor z = unit_rows(embeddings);
  const Tensor labelled = labels.ge(0);
  Tensor others = groups.unsqueeze(1).eq(groups.unsqueeze(0));
  others = others & labelled.unsqueeze(1) & labelled.unsqueeze(0);
  others.fill_diagonal_(false);
  const Tensor positives = others & labels.unsqueeze(1).eq(labels.unsqueeze(0));
  const Tensor logits = at::matmul(z, z.t()).div(temperature).masked_fill(~others, kMasked);
  const Tensor log_share = logits - logits.logsumexp(1, /*keepdim=*/true);
  const Tensor count = positives.sum(1);
  const Tensor term = -log_share.where(positives, 0).sum(1) / count.clamp_min(1);
  return mean_of(term, count.gt(0));
}

Tensor centre_cross_entropy(const Tensor& embeddings, const Tensor& centres, const Tensor& owners,
                            const Tensor& attributes, const Tensor& classes, double scale) {
  const Tensor elsewhere = attributes.unsqueeze(1).ne(owners.unsqueeze(0));
  const Tensor logits = at::matmul(unit_rows(embeddings), unit_rows(centres).t())
                            .mul(scale)
                            .masked_fill(elsewhere, kMasked);
  const Tensor log_share = logits - logits.logsumexp(1, /*keepdim=*/true);
  const Tensor own = log_share.gather(1, classes.clamp_min(0).unsqueeze(1)).squeeze(1);
  return mean_of(-own, classes.ge(0));
}

}  // namespace placket
