#include "kernels/rank_counter.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "base/simd.h"
#include "kernels/rank_key.h"

namespace placket {
namespace {

// So many scores at a time stay in the first-level cache.
constexpr int64_t kChunk = 1024;

// Writes the scores of candidates [begin, begin + count) and returns whether one is NaN.
PLACKET_SIMD bool weigh(const QueryScores& in, int64_t begin, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] = in.weights[0] * in.blocks[0][begin + i];
  for (int64_t s = 1; s < in.block_count; ++s) {
    for (int64_t i = 0; i < count; ++i) scores[i] += in.weights[s] * in.blocks[s][begin + i];
  }
  int32_t nan = 0;
  for (int64_t i = 0; i < count; ++i) nan |= int32_t(scores[i] != scores[i]);
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

// What a group of equal scores is expected to add to the sum of precisions when its order is
// random: `tied` candidates, `relevant` of them, behind `before` candidates, `found` of them
// relevant. The one at place i is relevant with probability relevant / tied and then has on average
// (i - 1) (relevant - 1) / (tied - 1) relevant ones of its group before it (McSherry and Najork,
// ECIR 2008). The terms are positive, so that the sum is exact to its last bits; the
// closed form by harmonic numbers cancels.
double expected_precision(int64_t found, int64_t before, int64_t relevant, int64_t tied) {
  const double density = double(relevant - 1) / double(std::max<int64_t>(tied - 1, 1));
  double sum = 0;
  for (int64_t i = 0; i < tied; ++i) {
    sum += (double(found + 1) + double(i) * density) / double(before + i + 1);
  }
  return sum * (double(relevant) / double(tied));
}

}  // namespace

bool RankCounter::operator()(const QueryScores& scores, const QueryRelevance& relevance,
                             const std::vector<int64_t>& cutoffs, const QueryMetrics& metrics) {
  if (!sort_relevant(scores, relevance) || !count(scores, relevance)) return false;
  measure(cutoffs, metrics);
  return true;
}

// By distribution to the buckets, which leaves little to sort.
bool RankCounter::sort_relevant(const QueryScores& in, const QueryRelevance& relevance) {
  listed_.resize(relevance.count);
  relevant_scores_.resize(relevance.count + 1);
  float lowest = std::numeric_limits<float>::infinity();
  highest_ = -lowest;
  int64_t count = 0;
  for (int64_t i = 0; i < relevance.count; ++i) {
    const int64_t row = relevance.rows[i];
    if (row == relevance.excluded) continue;
    float score = in.weights[0] * in.blocks[0][row];
    for (int64_t s = 1; s < in.block_count; ++s) score += in.weights[s] * in.blocks[s][row];
    if (score != score) return false;
    listed_[count] = rank_key(score, row);
    relevant_scores_[count++] = score;
    lowest = std::min(lowest, score);
    highest_ = std::max(highest_, score);
  }
  constexpr int64_t kLeastBuckets = 128;
  constexpr int64_t kMostBuckets = 1 << 15;  // 128 KiB of begin_ stay in the second-level cache
  buckets_ =
      int32_t(std::clamp(int64_t(std::bit_ceil(4 * uint64_t(count))), kLeastBuckets, kMostBuckets));
  scale_ = float(buckets_) / (highest_ - lowest);
  places_.resize(count);
  place(relevant_scores_.data(), count, highest_, scale_, buckets_, places_.data());
  begin_.assign(size_t(buckets_) + 2, 0);
  uint32_t most = 0;
  for (const int32_t at : places_) most = std::max(most, ++begin_[at + 2]);
  for (int32_t b = 0; b < buckets_; ++b) begin_[b + 2] += begin_[b + 1];
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
  return true;
}

bool RankCounter::count(const QueryScores& in, const QueryRelevance& relevance) {
  between_.assign(relevant_.size() + 1, 0);
  tied_before_.assign(relevant_.size(), 0);
  tied_after_.assign(relevant_.size(), 0);
  const int64_t* skipped = relevance.rows;
  const int64_t* const skipped_end = relevance.rows + relevance.count;
  std::array<float, kChunk> scores;
  std::array<int32_t, kChunk> places;
  for (int64_t begin = 0; begin < in.candidates; begin += kChunk) {
    const int64_t count = std::min(kChunk, in.candidates - begin);
    if (weigh(in, begin, count, scores.data())) return false;
    if (relevant_.empty()) continue;
    place(scores.data(), count, highest_, scale_, buckets_, places.data());
    for (; skipped < skipped_end && *skipped < begin + count; ++skipped) {
      places[*skipped - begin] = buckets_;
    }
    if (begin <= relevance.excluded && relevance.excluded < begin + count) {
      places[relevance.excluded - begin] = buckets_;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float score = scores[i];
      // What is left of the bucket after one comparison is rarely more than nothing, and a tie
      // rare.
      uint32_t p = begin_[places[i]];
      p += uint32_t(relevant_scores_[p] > score);
      if (relevant_scores_[p] >= score) {
        count_close(score, begin + i, places[i]);
      } else {
        ++between_[p];
      }
    }
  }
  return true;
}

// The comparison with all of a bucket.
void RankCounter::count_close(float score, int64_t row, int32_t bucket) {
  const auto begin = relevant_.begin() + begin_[bucket];
  const auto end = relevant_.begin() + begin_[bucket + 1];
  const auto next = std::lower_bound(begin, end, rank_key(score, row));
  const int64_t p = next - relevant_.begin();
  if (next < end && score_of(*next) == score) {
    ++tied_before_[p];
  } else if (next > begin && score_of(*(next - 1)) == score) {
    ++tied_after_[p - 1];
  } else {
    ++between_[p];
  }
}

void RankCounter::measure(const std::vector<int64_t>& cutoffs, const QueryMetrics& metrics) {
  const auto count = int64_t(relevant_.size());
  ranks_.clear();
  precision_sums_.clear();
  double sum = 0, expected = 0;
  int64_t others = 0;  // ranked so far that are not relevant
  for (int64_t p = 0; p < count;) {
    others += between_[p];
    const int64_t found = p, before = p + others;
    double own = 0;
    do {
      others += tied_before_[p];
      own = double(p + 1) / double(p + 1 + others);
      sum += own;
      ranks_.push_back(p + 1 + others);
      precision_sums_.push_back(sum);
      others += tied_after_[p];
      ++p;
    } while (p < count && relevant_scores_[p] == relevant_scores_[p - 1]);
    const int64_t tied = p + others - before;
    expected += tied == 1 ? own : expected_precision(found, before, p - found, tied);
  }
  const auto total = double(std::max<int64_t>(count, 1));
  *metrics.average_precision = sum / total;
  *metrics.expected_average_precision = expected / total;
  *metrics.first = count > 0 ? ranks_[0] : 0;
  for (size_t k = 0; k < cutoffs.size(); ++k) {
    const auto hits = std::upper_bound(ranks_.begin(), ranks_.end(), cutoffs[k]) - ranks_.begin();
    metrics.hits[k] = hits;
    metrics.precision_sum[k] = hits > 0 ? precision_sums_[hits - 1] : 0;
  }
}

}  // namespace placket
