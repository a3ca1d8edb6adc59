#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace placket {

// The k rows of the database with the largest dot product, exactly: every row is scored in float32,
// equal scores are ordered by row. The result depends on neither thread count nor on which other
// queries are asked along; memory does not grow with Q x N. On CUDA the scores are cuBLAS's (never
// TF32) and ordered by a stable sort. A NaN score is an error, on CUDA at the price of a
// synchronisation for each block. Not differentiable. Returns scores [Q, k] float32, descending,
// and rows [Q, k] int64.
std::tuple<at::Tensor, at::Tensor> flat_search(const at::Tensor& queries,   // [Q, D] float32
                                               const at::Tensor& database,  // [N, D] float32
                                               int64_t k);                  // 0 <= k <= N

}  // namespace placket
