#pragma once

#include <cstdint>
#include <vector>

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
  bool sort_relevant(const QueryScores& scores, const QueryRelevance& relevance);
  bool count(const QueryScores& scores, const QueryRelevance& relevance);
  void count_close(float score, int64_t row, int32_t bucket);
  void measure(const std::vector<int64_t>& cutoffs, const QueryMetrics& metrics);

  // Keys of the relevant candidates in the order of the ranking; their scores, with NaN behind.
  std::vector<uint64_t> relevant_, listed_;
  std::vector<float> relevant_scores_;

  // A table over the range of the relevant scores: bucket b holds those from begin_[b] to
  // begin_[b + 1]. Bucket buckets_ is empty, and for candidates that are not counted.
  float highest_ = 0, scale_ = 0;
  int32_t buckets_ = 1;
  std::vector<uint32_t> begin_;
  std::vector<int32_t> places_;

  // Numbers of candidates that are not relevant: between_[p] score below relevant p - 1 and above
  // p; tied_before_[p] score as p and stand before it, after any earlier relevant; tied_after_[p]
  // score as p, the last relevant of its score, and stand after it.
  std::vector<uint32_t> between_, tied_before_, tied_after_;

  std::vector<int64_t> ranks_;
  std::vector<double> precision_sums_;
};

}  // namespace placket
