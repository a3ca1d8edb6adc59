#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// BatchNorm with statistics of the batch, the addition of a residual and ReLU, in one pass over the
// map:
//
//   output = max(0, (input - mean_g) / sqrt(variance_g + eps) * weight + bias + residual)
//
// with mean_g and the biased variance_g taken over one of `groups` equal parts of the batch (images
// [g B / groups, (g + 1) B / groups)), so that one forward of a triplet's three roles normalises
// each by itself, as three forwards would. Without relu nothing is cut off. float32, float64, or
// bfloat16 maps with float32 parameters; maps are taken and returned in channels_last memory. B
// must be a multiple of `groups`; one position a group gives variance 0.
//
// Differentiable once in input, residual, weight and bias; mean and variance carry no gradient. The
// gradient at a pre-ReLU value of exactly 0 is 0. Deterministic, and independent of the number of
// threads. Autocast leaves it alone.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_act(
    const at::Tensor& input,                    // [B, C, h, w]
    const std::optional<at::Tensor>& residual,  // like input
    const at::Tensor& weight,                   // [C]
    const at::Tensor& bias,                     // [C]
    int64_t groups, double eps,
    bool relu);  // returns output [B, C, h, w], mean [groups, C], variance [groups, C]

}  // namespace placket
