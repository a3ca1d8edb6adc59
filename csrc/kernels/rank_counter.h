#pragma once

#include <cstdint>
#include <vector>

#include "base/host_device.h"

namespace placket {

// The scores of one query: the sum over blocks of weights[s] * blocks[s][candidate], each product
// and each sum rounded to float32, in the order of the blocks.
struct QueryScores {
  const float* const* blocks;  // [block_count] rows of length candidates
  const float* weights;        // [block_count]
  int64_t block_count;
  int64_t candidates;  // below 2^32
};

struct QueryRelevance {
  const int64_t* rows;  // [count] ascending, each once
  int64_t count;
  int64_t excluded;  // a candidate that is not ranked, or -1
};

// Where the measures of a query go (retrieval/rank_metrics.h).
struct QueryMetrics {
  double* average_precision;
  double* expected_average_precision;
  int64_t* hits;          // [cutoffs]
  double* precision_sum;  // [cutoffs]
  int64_t* first;
};

// Measures one query at a time, by counting what is ranked before each relevant candidate; no list
// is sorted but that of the relevant ones. Keeps its buffers from query to query.
class RankCounter {
 public:
  // False where a score is NaN; nothing is written then.
  bool operator()(const QueryScores& scores, const QueryRelevance& relevance,
                  const std::vector<int64_t>& cutoffs, const QueryMetrics& metrics);

 private:
  void sort_relevant(const QueryRelevance& relevance);
  void count_others(const QueryRelevance& relevance);
  void count_close(float score, int64_t row, int32_t bucket);

  std::vector<float> scores_;  // [candidates]

  // Keys of the relevant candidates in the order of the ranking; their scores, with NaN behind.
  std::vector<uint64_t> relevant_, listed_;
  std::vector<float> relevant_scores_;

  // A table over the range of the relevant scores: bucket b holds those from begin_[b] to
  // begin_[b + 1]. Bucket buckets_ is empty, and for candidates that are not counted.
  float highest_ = 0, scale_ = 0;
  int32_t buckets_ = 1;
  std::vector<uint32_t> begin_;
  std::vector<int32_t> places_;

  std::vector<uint32_t> counters_;  // of RankCounts
};

// The rankings of a block of queries, measured where the scores lie; all arrays are there. Trusts
// the values of its arguments. Two steps, between which the caller sorts the keys of each query.
struct RankBlock {
  const float* scores;  // [queries, candidates]
  int64_t queries;
  int64_t candidates;       // below 2^32
  const int64_t* groups;    // [queries]; the relevant rows of a query are those of its group,
  const int64_t* offsets;   // [G + 1], from offsets[group] to offsets[group + 1]
  const int64_t* rows;      // [N] of this
  const int64_t* excluded;  // [queries] a row that is not ranked, or -1; null: none is
  int64_t most;             // a group of these queries has at most so many rows
  uint64_t* keys;           // [queries, most]
  uint32_t* counters;       // [queries, rank_counters(most)], 0 at first
  const int64_t* cutoffs;   // [cutoff_count]
  int64_t cutoff_count;
  QueryMetrics metrics;  // of the first query; the others' follow
};

// Of RankCounts with so many keys, and behind them the number of scores that are NaN.
PLACKET_HOST_DEVICE constexpr int64_t rank_counters(int64_t most) { return 3 * (most + 1) + 1; }

// Step 1: the keys of each query's relevant candidates, then kNoKey.
void write_rank_keys_cpu(const RankBlock& in);
const char* launch_write_rank_keys(const RankBlock& in, Stream stream);

// Step 2, with ascending keys: counts and measures. The same bits as RankCounter's for the same
// scores; average_precision is NaN for a query with a score that is.
void measure_rank_block_cpu(const RankBlock& in);
const char* launch_measure_rank_block(const RankBlock& in, Stream stream);

}  // namespace placket
