#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// The batch-hard triplet loss (Hermans et al., "In Defense of the Triplet Loss for Person
// Re-Identification", 2017) in Euclidean distances d of rows at unit length, with p and n the
// hardest positive and negative of a row by batch_hard (ops/batch_hard.h):
//
//   mean over rows with both of  max(0, d(i, p) - d(i, n) + margin)
//   or without a margin of       log(1 + e^{d(i, p) - d(i, n)})
//
// and beside it the absolute term, the mean of d(i, p) over rows with a positive. With `domains`
// both partners are of another domain (MMFL-Net, arXiv 2210.15128, as reconstructed). 0 with a
// gradient of 0 where no row counts. float32, or float64 for float64; no B x B matrix in memory; no
// host synchronisation. Registered as placket::tri_hard, a composite operator.
std::tuple<at::Tensor, at::Tensor> tri_hard(
    const at::Tensor& embeddings,              // [B, D], normalised inside
    const at::Tensor& labels,                  // as batch_hard takes them
    const std::optional<at::Tensor>& domains,  // [B] int64
    std::optional<double> margin);             // returns [], []

}  // namespace placket
