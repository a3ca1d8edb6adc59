#pragma once

#include <ATen/core/Tensor.h>

#include "ops/autocast.h"

namespace placket {

// Embeddings at unit length, float32 at least; a zero row stays zero.
inline at::Tensor unit_rows(const at::Tensor& rows) {  // [..., E]
  const at::Tensor x = at_least_float32(rows);
  return x / x.norm(2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

}  // namespace placket
