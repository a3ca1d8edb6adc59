#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// The hardest positive and negative of each row in its batch (Hermans et al., "In Defense of the
// Triplet Loss for Person Re-Identification", 2017), by cosine: the least similar row that is a
// positive of it and the most similar one that is a negative.
//
// `labels` is one of
//   [B] int64      rows of one label are positives of each other, -1 (or less) takes no part;
//   [B, W] int64   sets of classes, 64 to a word: rows that share one are positives, a row without
//                  any takes no part;
//   [B, B] bool    which rows are positives of each other; a pair that is given in one order counts
//                  in both, the diagonal does not count, every row takes part.
// All others are negatives. With `groups` [B] int64 only rows of one group are compared, with
// `domains` [B] int64 only rows of different domains, consumers' photos with shops' for example.
//
// With `semi_hard` the negative is the most similar one that is less similar than that positive
// (Schroff et al., "FaceNet", CVPR 2015), and the least similar of all where there is none; of a
// row without a positive it is the most similar one.
//
// Returns the row of each positive and negative, [B] int64, -1 where there is none, and their
// cosines [B], 0 where there is none. Of equal ones the first row is taken. Rows are normalised
// inside, with norms floored at 1e-12; a cosine that is NaN counts as the hardest. float32,
// bfloat16 (computed in float32) or float64. There is no B x B matrix in memory: it is computed in
// tiles, and again for `semi_hard`, on the CPU the half above its diagonal. On the CPU the bits
// depend on neither tiles nor threads. No gradient. Under autocast it runs in float32.
using HardPairs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
HardPairs batch_hard(const at::Tensor& embeddings,             // [B, D]
                     const at::Tensor& labels,                 // [B], [B, W] or [B, B]
                     const std::optional<at::Tensor>& groups,  // [B]
                     bool semi_hard = false,
                     const std::optional<at::Tensor>& domains = std::nullopt);  // [B]

}  // namespace placket
