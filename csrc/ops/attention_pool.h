#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace placket {

// Attention over the positions of a map and what it leaves out (RPF, SIGIR 2023):
//
//   weights[b, a]    = softmax_p(logits[b, a])
//   pooled[b, a]     = sum_p weights[b, a, p] values[b, :, p]
//   background[b, a] = sum_p (1 - weights[b, a, p]) values[b, :, p] / (P - 1)
//                    = (sum_p values[b, :, p] - pooled[b, a]) / (P - 1)
//
// The published weights (1 - w) / sum_p (1 - w) have the denominator P - 1, whence the closed form:
// the sum over the positions is shared by all attributes. With P = 1 there is nothing outside the
// attention and the background is 0. Without `background` its place holds an empty tensor.
//
// float32, bfloat16 (sums in float32) or float64, both of one dtype. Values in channels_last memory
// (strides of a contiguous [B, P, C]) are read as they are and get a gradient of the same strides.
// A NaN logit makes its attribute's weights, pooled and background NaN; a NaN value makes its
// channel NaN for every attribute. P = 0 gives zeros. Differentiable once in both, through all
// three results. Deterministic. Under autocast both run in the wider of their two dtypes.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_pool(
    const at::Tensor& logits,  // [B, A, P]
    const at::Tensor& values,  // [B, C, P]
    bool background);          // returns pooled [B, A, C], background [B, A, C], weights [B, A, P]

}  // namespace placket
