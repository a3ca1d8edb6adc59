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
#include <cmath>
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

// Average precision of one query at a time; keeps its buffers from query to query.
class RankCounter {
 public:
  double operator()(const float* scores, const int64_t* values, int64_t count, int64_t wanted) {
    relevant_.clear();
    bool nan = false;
    for (int64_t c = 0; c < count; ++c) {
      nan |= std::isnan(scores[c]);
      if (values[c] == wanted) relevant_.push_back(rank_key(scores[c], c));
    }
    TORCH_CHECK_VALUE(!nan, kName,
                      ": scores must be numbers, got NaN; queries or candidates hold NaN or "
                      "overflow float32");
    if (relevant_.empty()) return 0;
    std::sort(relevant_.begin(), relevant_.end());
    fill_buckets();
    // others_[p] counts what is irrelevant and has exactly p relevant candidates before it.
    others_.assign(relevant_.size() + 1, 0);
    for (int64_t c = 0; c < count; ++c) {
      if (values[c] != wanted) ++others_[relevant_before(scores[c], c)];
    }
    double sum = 0;
    int64_t before = 0;
    for (size_t p = 0; p < relevant_.size(); ++p) {
      before += others_[p];
      sum += double(p + 1) / double(int64_t(p) + 1 + before);
    }
    return sum / double(relevant_.size());
  }

 private:
  // A table over the range of the relevant scores leaves few of them to search. It is exact for any
  // scores: bucket() is monotone, so what precedes a candidate lies in its bucket or above.
  void fill_buckets() {
    const float highest = score_of(relevant_.front());
    lowest_ = score_of(relevant_.back());
    buckets_ = int64_t(std::bit_ceil(2 * relevant_.size()));
    scale_ = float(buckets_) / (highest - lowest_);
    begin_.assign(buckets_ + 1, 0);
    for (uint64_t key : relevant_) ++begin_[buckets_ - 1 - bucket(score_of(key)) + 1];
    for (int64_t b = 0; b < buckets_; ++b) begin_[b + 1] += begin_[b];
  }

  // An infinite range or one of zero makes products NaN; they go to bucket 0.
  int64_t bucket(float score) const {
    const float place = (score - lowest_) * scale_;
    return place > 0 ? (place < float(buckets_) ? int64_t(place) : buckets_ - 1) : 0;
  }

  int64_t relevant_before(float score, int64_t row) const {
    const int64_t from_top = buckets_ - 1 - bucket(score);
    const auto begin = relevant_.begin() + begin_[from_top];
    const auto end = relevant_.begin() + begin_[from_top + 1];
    return std::lower_bound(begin, end, rank_key(score, row)) - relevant_.begin();
  }

  std::vector<uint64_t> relevant_;  // keys of the relevant candidates, in the order of the ranking
  std::vector<int64_t> others_, begin_;
  int64_t buckets_ = 0;
  float lowest_ = 0, scale_ = 0;
};

Tensor average_precision_cpu(const Tensor& queries, const Tensor& candidates,
                             const Tensor& query_values, const Tensor& candidate_values,
                             int64_t block) {
  check(queries, candidates, query_values, candidate_values, block);
  const int64_t count = queries.size(0), length = candidates.size(0);
  const Tensor q = dot_rows(queries), c = dot_rows(candidates);
  const Tensor wanted = query_values.contiguous(), values = candidate_values.contiguous();
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
        mutable_data<double>(precision)[i] = counter(
            rows + (i - begin) * length, data<int64_t>(values), length, data<int64_t>(wanted)[i]);
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
    TORCH_CHECK_VALUE(!scores.isnan().any().item<bool>(), kName,
                      ": scores must be numbers, got NaN; queries or candidates hold NaN or "
                      "overflow float32");
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
