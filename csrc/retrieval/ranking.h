#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>

#include <cstdint>

#include "base/dispatch.h"
#include "kernels/dot_scores.h"
#include "kernels/rank_key.h"

namespace placket {

// Contiguous rows whose length is what dot_scores_cpu wants.
inline at::Tensor dot_rows(const at::Tensor& rows) {
  const int64_t missing = (kDotLanes - rows.size(1) % kDotLanes) % kDotLanes;
  return missing ? at::constant_pad_nd(rows, {0, missing}) : rows.contiguous();
}

}  // namespace placket
