#include "ops/label_relation.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "base/checks.h"

namespace placket {

using at::Tensor;

void check_row_numbers(const char* op, const char* name, const Tensor& numbers,
                       const Tensor& embeddings) {
  const auto rows = embeddings.sym_size(0);
  TORCH_CHECK_VALUE(numbers.dim() == 1 && numbers.sym_size(0) == rows, op, ": ", name,
                    " must have shape [B] with the embeddings' B = ", rows, ", got ",
                    numbers.sym_sizes());
  check_dtype(op, name, numbers, at::kLong);
  check_same_device(op, name, numbers, "embeddings", embeddings);
}

void check_labels(const char* op, const Tensor& labels, const std::optional<Tensor>& groups,
                  const Tensor& embeddings) {
  const bool relation = labels.scalar_type() == at::kBool;
  TORCH_CHECK_TYPE(relation || labels.scalar_type() == at::kLong, op,
                   ": labels must be int64, or bool for a relation, got ", labels.scalar_type());
  const auto rows = embeddings.sym_size(0);
  const bool fits =
      relation ? labels.dim() == 2 && labels.sym_size(0) == rows && labels.sym_size(1) == rows
               : (labels.dim() == 1 || labels.dim() == 2) && labels.sym_size(0) == rows;
  TORCH_CHECK_VALUE(fits, op, ": labels must have shape ",
                    relation ? "[B, B]" : "[B], or [B, W] for sets,",
                    " with the embeddings' B = ", rows, ", got ", labels.sym_sizes());
  check_same_device(op, "labels", labels, "embeddings", embeddings);
  if (groups) check_row_numbers(op, "groups", *groups, embeddings);
}

Tensor takes_part(const Tensor& labels) {
  if (labels.scalar_type() == at::kBool) return at::ones_like(labels.diagonal());
  return labels.dim() == 1 ? labels.ge(0) : labels.ne(0).any(1);
}

std::tuple<Tensor, Tensor> label_relation(const Tensor& labels,
                                          const std::optional<Tensor>& groups) {
  check_labels("label_relation", labels, groups, labels);
  const auto pairs = [](const Tensor& x) { return std::pair(x.unsqueeze(1), x.unsqueeze(0)); };
  const auto [counted, also] = pairs(takes_part(labels));
  Tensor compared = counted & also;
  compared.fill_diagonal_(false);
  if (groups) {
    const auto [group, other] = pairs(*groups);
    compared = compared & group.eq(other);
  }
  Tensor related;
  if (labels.scalar_type() == at::kBool) {
    related = labels | labels.t();
  } else if (labels.dim() == 1) {
    const auto [label, other] = pairs(labels);
    related = label.eq(other);
  } else {
    related = at::zeros_like(compared);
    for (const Tensor& word : labels.unbind(1)) {
      const auto [set, other] = pairs(word);
      related = related | set.bitwise_and(other).ne(0);
    }
  }
  return {compared & related, compared & ~related};
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "label_relation(Tensor labels, Tensor? groups=None) -> (Tensor positives, Tensor negatives)",
      label_relation, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
