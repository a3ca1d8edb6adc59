#include "retrieval/average_precision.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <numeric>
#include <span>
#include <vector>

#include "base/checks.h"
#include "base/parallel.h"
#include "ops/autocast.h"
#include "retrieval/ranking.h"

namespace placket {

using at::Tensor;

Tensor average_precision(const Tensor& queries, const Tensor& candidates,
                         const Tensor& query_values, const Tensor& candidate_values,
                         int64_t block) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::average_precision", "")
                             .typed<decltype(average_precision)>();
  return op.call(queries, candidates, query_values, candidate_values, block);
}

namespace {

constexpr const char* kName = "average_precision";
constexpr const char* kNan =
    ": scores must be numbers, got NaN; queries or candidates hold NaN or overflow float32";

void check(const Tensor& queries, const Tensor& candidates, const Tensor& query_values,
           const Tensor& candidate_values, int64_t block) {
  check_shape(kName, "queries", queries, {-1, -1}, "[Q, D]");
  check_shape(kName, "candidates", candidates, {-1, queries.size(1)}, "[C, D] with D of queries");
  check_shape(kName, "query_values", query_values, {queries.size(0)}, "[Q]");
  check_shape(kName, "candidate_values", candidate_values, {candidates.size(0)}, "[C]");
  check_dtype(kName, "queries", queries, at::kFloat);
  check_dtype(kName, "candidates", candidates, at::kFloat);
  check_dtype(kName, "query_values", query_values, at::kLong);
  check_dtype(kName, "candidate_values", candidate_values, at::kLong);
  check_same_device(kName, "candidates", candidates, "queries", queries);
  check_same_device(kName, "query_values", query_values, "queries", queries);
  check_same_device(kName, "candidate_values", candidate_values, "queries", queries);
  TORCH_CHECK_VALUE(block >= 1, kName, ": block must be at least 1, got ", block);
  TORCH_CHECK_VALUE(candidates.size(0) < kMostRankedRows, kName,
                    ": candidates must be fewer than 2^32, got ", candidates.size(0));
}

// The candidates of each value, in order.
class Groups {
 public:
  Groups(const int64_t* values, int64_t count) : rows_(count), values_(count) {
    std::iota(rows_.begin(), rows_.end(), int64_t(0));
    std::stable_sort(rows_.begin(), rows_.end(),
                     [values](int64_t a, int64_t b) { return values[a] < values[b]; });
    for (int64_t i = 0; i < count; ++i) values_[i] = values[rows_[i]];
  }

  std::span<const int64_t> rows(int64_t value) const {
    const auto [begin, end] = std::equal_range(values_.begin(), values_.end(), value);
    return {rows_.data() + (begin - values_.begin()), size_t(end - begin)};
  }

 private:
  std::vector<int64_t> rows_;
  std::vector<int64_t> values_;  // of these rows
};

// Average precision of one query at a time; keeps its buffers from query to query.
class RankCounter {
 public:
  double operator()(const float* scores, int64_t count, std::span<const int64_t> relevant_rows) {
    bool nan = false;
    for (int64_t c = 0; c < count; ++c) nan |= scores[c] != scores[c];
    TORCH_CHECK_VALUE(!nan, kName, kNan);
    if (relevant_rows.empty()) return 0;
    relevant_.clear();
    for (int64_t row : relevant_rows) relevant_.push_back(rank_key(scores[row], row));
    std::sort(relevant_.begin(), relevant_.end());
    fill_buckets();
    // behind_[p] counts the candidates with exactly p relevant ones before them. Up to p these are
    // all whose rank is at most that of relevant candidate p.
    behind_.assign(relevant_.size() + 1, 0);
    for (int64_t c = 0; c < count; ++c) ++behind_[relevant_before(scores[c], c)];
    double sum = 0;
    int64_t rank = 0;
    for (size_t p = 0; p < relevant_.size(); ++p) {
      rank += behind_[p];
      sum += double(p + 1) / double(rank);
    }
    return sum / double(relevant_.size());
  }

 private:
  // A table over the range of the relevant scores leaves few of them to search. It is exact for any
  // scores: bucket() is monotone, so what precedes a candidate lies in its bucket or before.
  void fill_buckets() {
    constexpr size_t kMostBuckets = 1 << 14;  // 64 KiB of begin_, with the scores in the L2 cache
    const size_t buckets = std::min(std::bit_ceil(8 * relevant_.size()), kMostBuckets);
    highest_ = score_of(relevant_.front());
    scale_ = float(buckets) / (highest_ - score_of(relevant_.back()));
    last_ = float(buckets - 1);
    begin_.assign(buckets + 1, 0);
    for (uint64_t key : relevant_) ++begin_[bucket(score_of(key)) + 1];
    for (size_t b = 0; b < buckets; ++b) begin_[b + 1] += begin_[b];
  }

  // An infinite range or one of zero makes products NaN; they go to bucket 0.
  int32_t bucket(float score) const {
    const float place = (highest_ - score) * scale_;
    const float positive = place > 0 ? place : 0;
    return int32_t(positive < last_ ? positive : last_);
  }

  int64_t relevant_before(float score, int64_t row) const {
    const int32_t b = bucket(score);
    const auto begin = relevant_.begin() + begin_[b], end = relevant_.begin() + begin_[b + 1];
    return std::lower_bound(begin, end, rank_key(score, row)) - relevant_.begin();
  }

  std::vector<uint64_t> relevant_;  // keys of the relevant candidates, in the order of the ranking
  std::vector<uint32_t> behind_, begin_;
  float highest_ = 0, scale_ = 0, last_ = 0;
};

Tensor average_precision_cpu(const Tensor& queries, const Tensor& candidates,
                             const Tensor& query_values, const Tensor& candidate_values,
                             int64_t block) {
  check(queries, candidates, query_values, candidate_values, block);
  const int64_t count = queries.size(0), length = candidates.size(0);
  const Tensor q = dot_rows(queries), c = dot_rows(candidates);
  const Tensor wanted = query_values.contiguous(), values = candidate_values.contiguous();
  const Groups groups(data<int64_t>(values), length);
  const int64_t dims = q.size(1);
  Tensor precision = at::empty({count}, queries.options().dtype(at::kDouble));
  Tensor scores = at::empty({std::min(block, count), length}, queries.options());
  for (int64_t start = 0; start < count; start += block) {
    parallel_for(start, std::min(start + block, count), 1, [&](int64_t begin, int64_t end) {
      float* rows = mutable_data<float>(scores) + (begin - start) * length;
      dot_scores_cpu({data<float>(q) + begin * dims, data<float>(c), end - begin, length, dims},
                     rows, length);
      RankCounter counter;
      for (int64_t i = begin; i < end; ++i) {
        mutable_data<double>(precision)[i] =
            counter(rows + (i - begin) * length, length, groups.rows(data<int64_t>(wanted)[i]));
      }
    });
  }
  return precision;
}

Tensor average_precision_cuda(const Tensor& queries, const Tensor& candidates,
                              const Tensor& query_values, const Tensor& candidate_values,
                              int64_t block) {
  check(queries, candidates, query_values, candidate_values, block);
  const at::NoTF32Guard full_float32;
  const c10::OptionalDeviceGuard guard(queries.device());
  const int64_t count = queries.size(0);
  const auto doubles = queries.options().dtype(at::kDouble);
  const Tensor rank = at::arange(1, candidates.size(0) + 1, doubles);
  Tensor precision = at::empty({count}, doubles);
  for (int64_t start = 0; start < count; start += block) {
    const int64_t end = std::min(start + block, count);
    const Tensor scores = at::mm(queries.slice(0, start, end), candidates.t());
    TORCH_CHECK_VALUE(!scores.isnan().any().item<bool>(), kName, kNan);
    const Tensor order = std::get<1>(scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true));
    const Tensor wanted = query_values.slice(0, start, end).unsqueeze(1);
    const Tensor relevant = candidate_values.index({order}).eq(wanted).to(at::kDouble);
    const Tensor found = relevant.cumsum(1);
    const Tensor sum = (relevant * found / rank).sum(1);
    precision.slice(0, start, end).copy_(sum / relevant.sum(1).clamp_min(1));
  }
  return precision;
}

Tensor average_precision_autocast(const Tensor& queries, const Tensor& candidates,
                                  const Tensor& query_values, const Tensor& candidate_values,
                                  int64_t block) {
  const BelowAutocast below;
  return average_precision(at_least_float32(queries), at_least_float32(candidates), query_values,
                           candidate_values, block);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "average_precision(Tensor queries, Tensor candidates, Tensor query_values, Tensor "
      "candidate_values, int block=256) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) { m.impl("average_precision", average_precision_cpu); }
TORCH_LIBRARY_IMPL(placket, CUDA, m) { m.impl("average_precision", average_precision_cuda); }
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("average_precision", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) {
  m.impl("average_precision", average_precision_autocast);
}
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) {
  m.impl("average_precision", average_precision_autocast);
}

}  // namespace placket
