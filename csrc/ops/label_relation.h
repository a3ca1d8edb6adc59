#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// Which of the first dimension's rows take part, [B] bool, by labels as batch_hard takes them.
at::Tensor takes_part(const at::Tensor& labels);

// Which pairs of rows are positives and which are negatives, [B, B] bool each, by labels and groups
// as batch_hard takes them; neither where one of them takes no part, on the diagonal, and between
// groups. A composite operator.
std::tuple<at::Tensor, at::Tensor> label_relation(const at::Tensor& labels,
                                                  const std::optional<at::Tensor>& groups);

// Raises where `numbers`, an argument called `name`, is not one int64 for each embedding.
void check_row_numbers(const char* op, const char* name, const at::Tensor& numbers,
                       const at::Tensor& embeddings);

// Raises where labels or groups are not of the kinds that batch_hard takes.
void check_labels(const char* op, const at::Tensor& labels, const std::optional<at::Tensor>& groups,
                  const at::Tensor& embeddings);

}  // namespace placket
