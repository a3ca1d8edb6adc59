#pragma once

#include <cstdint>

#include "kernels/dot_kernel.h"

namespace placket {

// scores[q * stride + i] = <queries[q], items[i]>, float32, rows contiguous.
//
// The score of two rows is a function of these two rows alone: the products of each kDotBlock
// dimensions are added by one chain of fused multiply-adds, d ascending from 0, and the sums of the
// blocks are added in their order. So equal items have equal scores wherever they stand, and a
// ranking depends on neither blocks, threads nor batch. A library's matrix product promises none of
// this. CPUs with AVX2 and with AVX-512 give equal bits; one without fused multiply-adds rounds
// each product.
constexpr int64_t kDotLanes = 8;

// Rows are as long as a multiple of the lanes; zeros at the end change no score.
struct DotRows {
  const float* queries;  // [query_count, dims]
  const float* items;    // [item_count, dims]
  int64_t query_count;
  int64_t item_count;
  int64_t dims;  // a multiple of kDotLanes
};

// On the calling thread alone; callers divide queries or items among threads. Each call reads the
// items once for every 256 queries.
void dot_scores_cpu(const DotRows& in, float* scores, int64_t stride);

// The same scores of one query and a few items wherever they lie.
void listed_scores_cpu(const float* query, const float* const* items, int64_t item_count,
                       int64_t dims, float* scores);

}  // namespace placket
