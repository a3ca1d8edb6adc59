#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// Average precision of each query over the whole candidate list (protocol asfr-map-all/v1):
//
//   AP(q) = (1 / R_q) sum_i rel_i (sum_{j <= i} rel_j) / i,   0 when R_q = 0,
//
// candidates ranked by the dot product in float32, ties by candidate order. Computed by counting,
// for each relevant candidate, what is ranked before it: no sort of the list, and scores exist for
// one block of queries at a time, so memory does not grow with Q x C. The result depends on neither
// block size nor thread count. Returns [Q] float64.
at::Tensor average_precision(const at::Tensor& queries,     // [Q, D] float32, usually L2-normalised
                             const at::Tensor& candidates,  // [C, D] float32
                             const at::Tensor& query_values,      // [Q] int64
                             const at::Tensor& candidate_values,  // [C] int64
                             int64_t block = 256);

}  // namespace placket
