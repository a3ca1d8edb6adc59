#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// Scores [Q, k'] float32, descending; rows [Q, k'] int64; parts [Q, k', S] float32, each space's
// dot product without its weight.
using Hits = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// The k' = min(k, rows that may be found) rows with the largest score, exactly. Every row is scored
//
//   score = sum_s weights[s] * <queries[s], database[s]>
//
// in float32: the weight is rounded to float32, so is its product with the dot product, and then
// the products are added in the order of the spaces. Equal scores are ordered by row. The result
// depends on neither thread count, nor block size, nor on which other queries are asked along;
// memory does not grow with Q x N. On CUDA the dot products are cuBLAS's (never TF32), whose last
// bits may depend on the block, and are ordered by a stable sort. A NaN score is an error, on CUDA
// at the price of a synchronisation for each block; so is the number of rows in `keep`. Not
// differentiable.
Hits flat_search(at::TensorList queries,                 // [S] of [Q, D_s] float32
                 at::TensorList database,                // [S] of [N, D_s] float32
                 at::ArrayRef<double> weights,           // [S]
                 const std::optional<at::Tensor>& keep,  // [N] bool: rows that may be found
                 int64_t k);

// The same hits, in every bit, for less memory traffic: rows are first scored from `quantize`'s
// codes and bounds, and only those whose upper bound reaches the k-th best score are scored again
// from `database`. Codes of other rows give other hits. On CUDA the codes are not read.
Hits flat_search_compressed(at::TensorList queries, at::TensorList database,
                            at::TensorList codes,   // [S] of [N, D_s], all int8 or bfloat16
                            at::TensorList bounds,  // [S] of [N, 3] float32
                            at::ArrayRef<double> weights, const std::optional<at::Tensor>& keep,
                            int64_t k);

}  // namespace placket
