#include "kernels/rank_counter.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <numeric>

#include "base/simd.h"
#include "kernels/rank_counts.h"
#include "kernels/rank_key.h"

namespace placket {
namespace {

// So many scores at a time stay in the first-level cache.
constexpr int64_t kChunk = 1024;

// Returns whether a score is NaN.
PLACKET_SIMD bool weigh(const QueryScores& in, float* scores) {
  const float* block = in.blocks[0];
  float weight = in.weights[0];
  for (int64_t i = 0; i < in.candidates; ++i) scores[i] = weight * block[i];
  for (int64_t s = 1; s < in.block_count; ++s) {
    block = in.blocks[s];
    weight = in.weights[s];
    for (int64_t i = 0; i < in.candidates; ++i) scores[i] += weight * block[i];
  }
  int32_t nan = 0;
  for (int64_t i = 0; i < in.candidates; ++i) nan |= int32_t(scores[i] != scores[i]);
  return nan != 0;
}

// The bucket of a score, by a function that falls with it: what precedes a candidate lies in its
// bucket or before. An infinite range or one of zero makes products NaN; they go to bucket 0.
PLACKET_SIMD void place(const float* scores, int64_t count, float highest, float scale,
                        int32_t buckets, int32_t* places) {
  const auto last = float(buckets - 1);
  for (int64_t i = 0; i < count; ++i) {
    const float at = (highest - scores[i]) * scale;
    const float positive = at > 0 ? at : 0;
    places[i] = int32_t(positive < last ? positive : last);
  }
}

// Counts the candidates that one comparison places between two relevant ones; lists the others,
// which are few, for ties are rare and buckets seldom hold more than one. A function of its own
// keeps its pointers in registers.
__attribute__((noinline)) int64_t count_clear(const float* scores, const int32_t* places,
                                              int64_t count, const uint32_t* bucket_begin,
                                              const float* relevant_scores, uint32_t* between,
                                              int32_t* close) {
  int64_t listed = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float score = scores[i];
    uint32_t p = bucket_begin[places[i]];
    p += uint32_t(relevant_scores[p] > score);
    if (relevant_scores[p] >= score) {
      close[listed++] = int32_t(i);
    } else {
      ++between[p];
    }
  }
  return listed;
}

}  // namespace

bool RankCounter::operator()(const QueryScores& scores, const QueryRelevance& relevance,
                             const std::vector<int64_t>& cutoffs, const QueryMetrics& metrics) {
  scores_.resize(scores.candidates);
  if (weigh(scores, scores_.data())) return false;
  sort_relevant(relevance);
  const auto count = int64_t(relevant_.size());
  counters_.assign(size_t(3 * (count + 1)), 0);
  if (count > 0) count_others(relevance);
  measure_ranks({relevant_.data(), count, counters_.data(), count + 1}, cutoffs.data(),
                int64_t(cutoffs.size()), metrics);
  return true;
}

// By distribution to the buckets, which leaves little to sort.
void RankCounter::sort_relevant(const QueryRelevance& relevance) {
  listed_.resize(relevance.count);
  relevant_scores_.resize(relevance.count + 1);
  float lowest = std::numeric_limits<float>::infinity(), highest = -lowest;
  int64_t count = 0;
  for (int64_t i = 0; i < relevance.count; ++i) {
    const int64_t row = relevance.rows[i];
    if (row == relevance.excluded) continue;
    const float score = scores_[row];
    listed_[count] = rank_key(score, row);
    relevant_scores_[count++] = score;
    lowest = std::min(lowest, score);
    highest = std::max(highest, score);
  }
  highest_ = highest;
  constexpr int64_t kLeastBuckets = 128;
  constexpr int64_t kMostBuckets = 1 << 15;  // 128 KiB of begin_ stay in the second-level cache
  buckets_ =
      int32_t(std::clamp(int64_t(std::bit_ceil(4 * uint64_t(count))), kLeastBuckets, kMostBuckets));
  scale_ = float(buckets_) / (highest - lowest);
  places_.resize(count);
  place(relevant_scores_.data(), count, highest, scale_, buckets_, places_.data());
  begin_.assign(size_t(buckets_) + 2, 0);
  uint32_t most = 0;
  for (const int32_t at : places_) most = std::max(most, ++begin_[at + 2]);
  std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
  // begin_[b + 1] goes from the begin of bucket b to its end, which is the begin of b + 1.
  relevant_.resize(count);
  for (int64_t i = 0; i < count; ++i) relevant_[begin_[places_[i] + 1]++] = listed_[i];
  constexpr uint32_t kFew = 32;
  if (most > kFew) {
    std::sort(relevant_.begin(), relevant_.end());
  } else {
    for (int64_t i = 1; i < count; ++i) {
      const uint64_t key = relevant_[i];
      int64_t to = i;
      for (; to > 0 && relevant_[to - 1] > key; --to) relevant_[to] = relevant_[to - 1];
      relevant_[to] = key;
    }
  }
  for (int64_t i = 0; i < count; ++i) relevant_scores_[i] = score_of(relevant_[i]);
  relevant_scores_[count] = std::numeric_limits<float>::quiet_NaN();
}

void RankCounter::count_others(const QueryRelevance& relevance) {
  const int64_t* skipped = relevance.rows;
  const int64_t* const skipped_end = relevance.rows + relevance.count;
  std::array<int32_t, kChunk> places, close;
  const auto candidates = int64_t(scores_.size());
  for (int64_t begin = 0; begin < candidates; begin += kChunk) {
    const int64_t count = std::min(kChunk, candidates - begin);
    const float* scores = scores_.data() + begin;
    place(scores, count, highest_, scale_, buckets_, places.data());
    for (; skipped < skipped_end && *skipped < begin + count; ++skipped) {
      places[*skipped - begin] = buckets_;
    }
    if (begin <= relevance.excluded && relevance.excluded < begin + count) {
      places[relevance.excluded - begin] = buckets_;
    }
    const int64_t listed = count_clear(scores, places.data(), count, begin_.data(),
                                       relevant_scores_.data(), counters_.data(), close.data());
    for (int64_t k = 0; k < listed; ++k) {
      const int32_t i = close[k];
      count_close(scores[i], begin + i, places[i]);
    }
  }
}

// The comparison with all of a bucket.
void RankCounter::count_close(float score, int64_t row, int32_t bucket) {
  const auto stride = int64_t(relevant_.size()) + 1;
  ++counters_[rank_counter_of(relevant_.data(), begin_[bucket], begin_[bucket + 1], stride,
                              rank_key(score, row))];
}

void write_rank_keys_cpu(const RankBlock& in) {
  for (int64_t i = 0; i < in.queries * in.most; ++i) {
    in.keys[i] = relevant_key(in, i / in.most, i % in.most);
  }
}

void measure_rank_block_cpu(const RankBlock& in) {
  for (int64_t query = 0; query < in.queries; ++query) {
    uint32_t* counters = in.counters + query * rank_counters(in.most);
    for (int64_t row = 0; row < in.candidates; ++row) {
      const int64_t counter = block_counter_of(in, query, row);
      if (counter >= 0) ++counters[counter];
    }
    measure_query(in, query);
  }
}

}  // namespace placket
