#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// Triplet hinge on cosine similarity (ASEN, AAAI 2020; RPF, SIGIR 2023):
//
//   hinge_i = max(0, margin - cos(anchor_i, positive_i) + cos(anchor_i, negative_i))
//
// Rows are normalised inside, with norms floored at 1e-12 as in torch.nn.functional.normalize; a
// zero row therefore has cosine 0. float32, bfloat16 (sums in float32) or float64, all three of one
// dtype. A hinge of exactly 0 has gradient 0. NaN passes through. Differentiable once in all three;
// deterministic. Under autocast it runs in float32.
at::Tensor cosine_triplet(const at::Tensor& anchor,    // [N, D]
                          const at::Tensor& positive,  // [N, D]
                          const at::Tensor& negative,  // [N, D]
                          double margin);              // returns [N]

}  // namespace placket
