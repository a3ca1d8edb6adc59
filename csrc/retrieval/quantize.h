#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace placket {

constexpr float kMostNorm = 0x1p40f;

// Rows in fewer bits, and what that cost.
//
// bfloat16: each value rounded to nearest, scale 1. int8: the row divided by scale = its largest
// magnitude / 127 and rounded to nearest, so codes are in [-127, 127].
//
// Returns codes [N, D] and bounds [N, 3] float32: scale, residual >= |x - scale * code|, and
// norm >= |x| and |scale * code|, both rounded up. A row must be of numbers, its norm at most
// 2^40. On CUDA that check is a synchronisation. Not differentiable.
std::tuple<at::Tensor, at::Tensor> quantize(const at::Tensor& rows,  // [N, D] float32
                                            at::ScalarType dtype);   // bfloat16 or int8

}  // namespace placket
