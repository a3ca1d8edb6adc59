#pragma once

#include <ATen/ATen.h>

namespace placket {

// A logit that does not count; finite, so that a row with nothing left has a zero gradient and not
// NaN.
constexpr double kMasked = -1e30;

// Mean of the values that count, 0 where none does.
inline at::Tensor mean_of(const at::Tensor& values, const at::Tensor& counted) {
  return values.where(counted, 0).sum() / counted.sum().clamp_min(1);
}

}  // namespace placket
