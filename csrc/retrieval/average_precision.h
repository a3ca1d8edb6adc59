#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// Groups for rank_metrics.h where a candidate is relevant when its value equals the query's. The
// shapes do not depend on the values: with the candidates in the order of their values, group g
// holds those of the g-th value if it is the last of its kind, and none otherwise; group C is for
// queries whose value no candidate has.
std::tuple<at::Tensor,                             // query_groups [Q] int64
           at::Tensor,                             // group_offsets [C + 2] int64
           at::Tensor>                             // group_rows [C] int64
value_groups(const at::Tensor& query_values,       // [Q] int64
             const at::Tensor& candidate_values);  // [C] int64

// Average precision of each query over the whole candidate list (protocol asfr-map-all/v1): that of
// rank_metrics with one block of embeddings and groups of equal values. Returns [Q] float64.
at::Tensor average_precision(const at::Tensor& queries,           // [Q, D] float32
                             const at::Tensor& candidates,        // [C, D] float32
                             const at::Tensor& query_values,      // [Q] int64
                             const at::Tensor& candidate_values,  // [C] int64
                             std::optional<int64_t> block = std::nullopt);

}  // namespace placket
