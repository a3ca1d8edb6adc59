#pragma once

#include <cmath>
#include <cstdint>

#include "base/host_device.h"
#include "base/unfused.h"
#include "kernels/rank_counter.h"
#include "kernels/rank_key.h"

namespace placket {

// The relevant candidates of a query in the order of its ranking, and how many others stand among
// them. Of the others, counter p is of those that score below relevant p - 1 and above p; counter
// stride + p of those that score as p and stand before it, after any earlier relevant; counter
// 2 stride + p of those that score as p, the last relevant of its score, and stand after it.
struct RankCounts {
  const uint64_t* relevant;  // [count] keys, ascending
  int64_t count;
  const uint32_t* counters;  // [3, stride]
  int64_t stride;            // above count
};

// The counter of a candidate that is not relevant. [begin, end) of the relevant keys must hold all
// of its score, and all before `begin` must precede it and all from `end` on follow it.
PLACKET_HOST_DEVICE inline int64_t rank_counter_of(const uint64_t* relevant, int64_t begin,
                                                   int64_t end, int64_t stride, uint64_t key) {
  int64_t p = begin, behind = end;
  while (p < behind) {
    const int64_t middle = p + (behind - p) / 2;
    if (relevant[middle] < key) {
      p = middle + 1;
    } else {
      behind = middle;
    }
  }
  if (p < end && same_score(relevant[p], key)) return stride + p;
  if (p > begin && same_score(relevant[p - 1], key)) return 2 * stride + p - 1;
  return p;
}

// What a group of equal scores is expected to add to the sum of precisions when its order is
// random: `tied` candidates, `relevant` of them, behind `before` candidates, `found` of them
// relevant. The one at place i is relevant with probability relevant / tied and then has on average
// (i - 1) (relevant - 1) / (tied - 1) relevant ones of its group before it (McSherry and Najork,
// ECIR 2008). The terms are positive, so that the sum is exact to its last bits; the
// closed form by harmonic numbers cancels.
PLACKET_HOST_DEVICE inline double expected_precision(int64_t found, int64_t before,
                                                     int64_t relevant, int64_t tied) {
  const double density = double(relevant - 1) / double(tied > 1 ? tied - 1 : 1);
  double sum = 0;
  for (int64_t i = 0; i < tied; ++i) {
    sum += (double(found + 1) + multiply_unfused(double(i), density)) / double(before + i + 1);
  }
  return multiply_unfused(sum, double(relevant) / double(tied));
}

PLACKET_HOST_DEVICE inline void measure_ranks(const RankCounts& in, const int64_t* cutoffs,
                                              int64_t cutoff_count, const QueryMetrics& out) {
  int64_t furthest = 0;
  for (int64_t k = 0; k < cutoff_count; ++k) {
    furthest = cutoffs[k] > furthest ? cutoffs[k] : furthest;
    out.hits[k] = 0;
    out.precision_sum[k] = 0;
  }
  *out.first = 0;
  double sum = 0, expected = 0;
  int64_t others = 0;  // ranked so far that are not relevant
  for (int64_t p = 0; p < in.count;) {
    others += in.counters[p];
    const int64_t found = p, before = p + others;
    double own = 0;
    do {
      others += in.counters[in.stride + p];
      const int64_t rank = p + 1 + others;
      own = double(p + 1) / double(rank);
      sum += own;
      if (p == 0) *out.first = rank;
      for (int64_t k = 0; rank <= furthest && k < cutoff_count; ++k) {
        if (rank > cutoffs[k]) continue;
        out.hits[k] = p + 1;
        out.precision_sum[k] = sum;
      }
      others += in.counters[2 * in.stride + p];
      ++p;
    } while (p < in.count && same_score(in.relevant[p], in.relevant[p - 1]));
    const int64_t tied = p + others - before;
    expected += tied == 1 ? own : expected_precision(found, before, p - found, tied);
  }
  const double total = in.count > 0 ? double(in.count) : 1.0;
  *out.average_precision = sum / total;
  *out.expected_average_precision = expected / total;
}

// The steps of a RankBlock for one query and one entry of it.

PLACKET_HOST_DEVICE inline bool excluded_from(const RankBlock& in, int64_t query, int64_t row) {
  return in.excluded != nullptr && in.excluded[query] == row;
}

PLACKET_HOST_DEVICE inline uint64_t relevant_key(const RankBlock& in, int64_t query, int64_t i) {
  const int64_t* offset = in.offsets + in.groups[query];
  if (i >= offset[1] - offset[0]) return kNoKey;
  const int64_t row = in.rows[offset[0] + i];
  if (excluded_from(in, query, row)) return kNoKey;
  return rank_key(in.scores[query * in.candidates + row], row);
}

// The counter of a candidate, or -1 where none counts it: it is relevant, or not ranked.
PLACKET_HOST_DEVICE inline int64_t block_counter_of(const RankBlock& in, int64_t query,
                                                    int64_t row) {
  const float score = in.scores[query * in.candidates + row];
  const int64_t stride = in.most + 1;
  if (score != score) return 3 * stride;
  if (excluded_from(in, query, row)) return -1;
  const uint64_t* relevant = in.keys + query * in.most;
  const uint64_t key = rank_key(score, row);
  const int64_t counter = rank_counter_of(relevant, 0, in.most, stride, key);
  // Of a relevant candidate the search finds its own key.
  const bool own = stride <= counter && counter < 2 * stride && relevant[counter - stride] == key;
  return own ? -1 : counter;
}

PLACKET_HOST_DEVICE inline void measure_query(const RankBlock& in, int64_t query) {
  const uint64_t* relevant = in.keys + query * in.most;
  const uint32_t* counters = in.counters + query * rank_counters(in.most);
  const int64_t stride = in.most + 1;
  int64_t count = 0;
  while (count < in.most && relevant[count] != kNoKey) ++count;
  const QueryMetrics out = {
      in.metrics.average_precision + query, in.metrics.expected_average_precision + query,
      in.metrics.hits + query * in.cutoff_count, in.metrics.precision_sum + query * in.cutoff_count,
      in.metrics.first + query};
  measure_ranks({relevant, count, counters, stride}, in.cutoffs, in.cutoff_count, out);
  if (counters[3 * stride] > 0) *out.average_precision = NAN;
}

}  // namespace placket
