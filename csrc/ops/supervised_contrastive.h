#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace placket {

// Supervised contrastive loss (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020)
// among rows of one group. With P(i) the positives of row i, G(i) these and its negatives (labels
// and groups as batch_hard takes them), and s_ij = e^{z_i z_j / t} / sum_{k in G(i)} e^{z_i z_k /
// t}:
//
//   mean over i with P(i) not empty of  -1/|P(i)| sum_{p in P(i)} log s_ip       (L_out, equation
//   2) with `inside`, of                   -log( 1/|P(i)| sum_{p in P(i)} s_ip )    (L_in, equation
//   3)
//
// Rows are normalised inside. 0, with a gradient of 0, when no row has a positive. Computed in
// float32, or float64 for float64; no host synchronisation. A composite operator: it keeps B x B
// matrices for backward.
at::Tensor supervised_contrastive(const at::Tensor& embeddings,             // [B, D]
                                  const at::Tensor& labels,                 // [B], [B, W], [B, B]
                                  const std::optional<at::Tensor>& groups,  // [B]
                                  double temperature,                       // above 0
                                  bool inside);                             // returns []

}  // namespace placket
