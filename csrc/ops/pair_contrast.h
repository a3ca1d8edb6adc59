#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// Contrastive losses between two sides, images and texts for example, of logits z_ij = scale x_i
// y_j
// (+ bias). Rows are taken as they are; callers normalise them.
//
// What a pair is, is said by one of
//   nothing            x_i and y_i are each other's only positive, B = M;
//   labels [B] int64   with y_labels [M] (the same as labels where they are absent): positive where
//                      they are equal, and -1 (or less) takes no part;
//   labels [B, W]      int64, sets of classes as batch_hard takes them, with y_labels [M, W]:
//                      positive where they share a class, an empty set takes no part;
//   labels [B, M] bool which pairs are positive.
// Pairs that are not valid, [B, M] bool, or of which one side takes no part, are left out. All
// others are negatives.
//
// x and y are float32, bfloat16 or float64 of one dtype; losses are float32, or float64 for
// float64, and so is everything inside but, on CUDA, gradients in the logits of bfloat16 rows,
// which are bfloat16. Under autocast rows keep their dtype and meet at the wider of the two;
// float16 becomes float32. `scale` and `bias` are scalars of any floating dtype on the device of x
// and may be negative or 0. There is no B x M matrix in memory: logits are computed in tiles, and
// once more for the gradients of info_nce. A NaN in a compared row makes the loss NaN, and any NaN
// gradients. On the CPU bits do not depend on threads; on CUDA two equal calls give equal bits, and
// no call waits for the device. Differentiable once in x, y, scale and bias.

// Of InfoNCE (CLIP: Radford et al., ICML 2021; several positives as the soft target that is uniform
// over them), with P(i) the positives of row i and C(i) its compared pairs,
//
//   row_terms_i = log sum_{j in C(i)} e^{z_ij}  -  1/|P(i)| sum_{p in P(i)} z_ip,
//
// 0 where P(i) is empty, and |P(i)|; the same of the columns, and the log-sum-exp of both, which
// are not differentiable. Without `symmetric` those of the columns are empty.
using InfoNceTerms =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
InfoNceTerms info_nce_terms(const at::Tensor& x,      // [B, D]
                            const at::Tensor& y,      // [M, D]
                            const at::Tensor& scale,  // []
                            const std::optional<at::Tensor>& labels,
                            const std::optional<at::Tensor>& y_labels,
                            const std::optional<at::Tensor>& valid,
                            bool symmetric);  // returns row_terms, row_positives, column_terms,
                                              // column_positives, row_lse, column_lse

// The mean of the terms of rows that have a positive (0 without any), with `symmetric` averaged
// with that of the columns. A composite operator.
at::Tensor info_nce(const at::Tensor& x, const at::Tensor& y, const at::Tensor& scale,
                    const std::optional<at::Tensor>& labels,
                    const std::optional<at::Tensor>& y_labels,
                    const std::optional<at::Tensor>& valid, bool symmetric);

// The sum over compared pairs of log(1 + e^{-z}) of positives and log(1 + e^z) of negatives, and
// how many rows have a compared pair (int64). Where a gradient is asked for it is computed with the
// loss, so that there is one product for the logits.
std::tuple<at::Tensor, at::Tensor> pairwise_sigmoid_sum(const at::Tensor& x, const at::Tensor& y,
                                                        const at::Tensor& scale,
                                                        const std::optional<at::Tensor>& bias,
                                                        const std::optional<at::Tensor>& labels,
                                                        const std::optional<at::Tensor>& y_labels,
                                                        const std::optional<at::Tensor>& valid);

// That sum divided by those rows: SigLIP's loss (Zhai et al., ICCV 2023), which divides by B; 0
// without any. A composite operator.
at::Tensor pairwise_sigmoid(const at::Tensor& x, const at::Tensor& y, const at::Tensor& scale,
                            const std::optional<at::Tensor>& bias,
                            const std::optional<at::Tensor>& labels,
                            const std::optional<at::Tensor>& y_labels,
                            const std::optional<at::Tensor>& valid);

}  // namespace placket
