#include "ops/supervised_contrastive.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "base/checks.h"
#include "ops/autocast.h"
#include "ops/label_relation.h"
#include "ops/loss_terms.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

Tensor supervised_contrastive(const Tensor& embeddings, const Tensor& labels,
                              const std::optional<Tensor>& groups, double temperature,
                              bool inside) {
  constexpr const char* kName = "supervised_contrastive";
  TORCH_CHECK_VALUE(embeddings.dim() == 2, kName, ": embeddings must have shape [B, D], got ",
                    embeddings.sym_sizes());
  check_labels(kName, labels, groups, embeddings);
  TORCH_CHECK_VALUE(temperature > 0, kName, ": temperature must be above 0, got ", temperature);
  const BelowAutocast below;
  const auto [positives, negatives] = label_relation(labels, groups);
  const Tensor z = unit_rows(embeddings);
  const Tensor logits =
      at::matmul(z, z.t()).div(temperature).masked_fill(~(positives | negatives), kMasked);
  const Tensor log_share = logits - logits.logsumexp(1, /*keepdim=*/true);
  const Tensor count = positives.sum(1);
  const Tensor term =
      inside ? count.clamp_min(1).log() - log_share.masked_fill(~positives, kMasked).logsumexp(1)
             : -log_share.where(positives, 0).sum(1) / count.clamp_min(1);
  return mean_of(term, count.gt(0));
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "supervised_contrastive(Tensor embeddings, Tensor labels, Tensor? groups=None, float "
      "temperature=0.1, bool inside=False) -> Tensor",
      supervised_contrastive, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
