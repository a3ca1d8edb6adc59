#include "ops/centre_cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "base/checks.h"
#include "ops/autocast.h"
#include "ops/loss_terms.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

Tensor centre_cross_entropy(const Tensor& embeddings, const Tensor& centres, const Tensor& owners,
                            const Tensor& attributes, const Tensor& classes, double scale) {
  constexpr const char* kName = "centre_cross_entropy";
  const bool sets = classes.scalar_type() == at::kBool;
  TORCH_CHECK_VALUE(embeddings.dim() == 2, kName, ": embeddings must have shape [B, D], got ",
                    embeddings.sym_sizes());
  TORCH_CHECK_VALUE(centres.dim() == 2 && centres.sym_size(1) == embeddings.sym_size(1), kName,
                    ": centres must have shape [C, D] with the embeddings' D, got ",
                    centres.sym_sizes());
  TORCH_CHECK_VALUE(
      classes.dim() == (sets ? 2 : 1) && classes.sym_size(0) == embeddings.sym_size(0) &&
          (!sets || classes.sym_size(1) == centres.sym_size(0)),
      kName, ": classes must have shape ", sets ? "[B, C]" : "[B]", ", got ", classes.sym_sizes());
  if (!sets) check_dtype(kName, "classes", classes, at::kLong);
  const BelowAutocast below;
  const Tensor elsewhere = attributes.unsqueeze(1).ne(owners.unsqueeze(0));
  const Tensor logits = at::matmul(unit_rows(embeddings), unit_rows(centres).t())
                            .mul(scale)
                            .masked_fill(elsewhere, kMasked);
  const Tensor log_share = logits - logits.logsumexp(1, /*keepdim=*/true);
  if (!sets) {
    const Tensor own = log_share.gather(1, classes.clamp_min(0).unsqueeze(1)).squeeze(1);
    return mean_of(-own, classes.ge(0));
  }
  const Tensor wanted = classes & ~elsewhere;
  const Tensor count = wanted.sum(1);
  return mean_of(-log_share.where(wanted, 0).sum(1) / count.clamp_min(1), count.gt(0));
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "centre_cross_entropy(Tensor embeddings, Tensor centres, Tensor owners, Tensor attributes, "
      "Tensor classes, float scale=16.0) -> Tensor",
      centre_cross_entropy, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
