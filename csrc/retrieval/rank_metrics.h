#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace placket {

// Measures of each query's ranking of all candidates, exactly. A candidate's score is
//
//   sum_s weights[w, s] <queries[s][q], candidates[s][c]>
//
// in float32: S dot products, taken once for all W weightings, then products and sums in the order
// of s. Candidates are ranked by score, ties by candidate order. Relevant to query q are the rows
// group_rows[group_offsets[g]] to group_rows[group_offsets[g + 1]] (exclusive) of its group
// g = query_groups[q]; excluded[q] is a row that is not ranked for it, relevant or not. With R
// relevant rows in the ranking, the i-th of them at rank r_i (from 1):
//
//   average_precision           sum_i (i / r_i) / R
//   expected_average_precision  its mean over all orders of candidates of equal score; the same
//                               bits as average_precision where there are no ties
//   hits                        at each cutoff K, how many r_i are at most K
//   precision_sum               at each cutoff K, sum of i / r_i over these; over R, min(R, K) or
//                               hits it is one of the three MAP@K of the literature
//   first                       r_1
//
// and all are 0 where R is 0. A NaN score is an error. Not differentiable.
//
// What is ranked before each relevant row is counted, in whole numbers; no list is sorted but that
// of the relevant rows, and no matrix [Q, C] is made. Equal scores have equal measures on every
// device, to the bit.
//
// On CPU nothing depends on `block` or the number of threads: a dot product is a function of its
// two rows (kernels/dot_scores.h). On CUDA the scores of a block are S products of cuBLAS (float32,
// never TF32), whose last bits may depend on the block; the host waits for the device at the start,
// for the indices, and at the end. Memory: the S scores of one block of queries, 4 S C bytes for
// each query, and those of one query for each thread. By default a block has as many queries as fit
// into 64 MiB, at least 24 and at most 120. On CUDA it is 4 (S + 2) C bytes for each query and
// about 64 for each of its relevant rows, and a block has as many as fit into 256 MiB.
using RankMetrics = std::tuple<at::Tensor,   // average_precision [W, Q] float64
                               at::Tensor,   // expected_average_precision [W, Q] float64
                               at::Tensor,   // hits [W, Q, K] int64
                               at::Tensor,   // precision_sum [W, Q, K] float64
                               at::Tensor>;  // first [W, Q] int64

RankMetrics rank_metrics(
    at::TensorList queries,                     // S of [Q, D_s] float32
    at::TensorList candidates,                  // S of [C, D_s] float32
    const at::Tensor& weights,                  // [W, S] float32
    const at::Tensor& query_groups,             // [Q] int64 in [0, G)
    const at::Tensor& group_offsets,            // [G + 1] int64, from 0 to N, not falling
    const at::Tensor& group_rows,               // [N] int64, ascending in each group
    const std::optional<at::Tensor>& excluded,  // [Q] int64, -1 for none
    at::IntArrayRef cutoffs,                    // K, each at least 1
    std::optional<int64_t> block = std::nullopt);

// The same of given scores: [Q], [Q], [Q, K], [Q, K], [Q].
RankMetrics rank_metrics_of_scores(const at::Tensor& scores,  // [Q, C] float32
                                   const at::Tensor& query_groups, const at::Tensor& group_offsets,
                                   const at::Tensor& group_rows,
                                   const std::optional<at::Tensor>& excluded,
                                   at::IntArrayRef cutoffs);

}  // namespace placket
