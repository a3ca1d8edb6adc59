#include "retrieval/rank_metrics.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "base/checks.h"
#include "base/parallel.h"
#include "base/stream.h"
#include "kernels/rank_counter.h"
#include "ops/autocast.h"
#include "retrieval/ranking.h"

namespace placket {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

RankMetrics rank_metrics(at::TensorList queries, at::TensorList candidates, const Tensor& weights,
                         const Tensor& query_groups, const Tensor& group_offsets,
                         const Tensor& group_rows, const MaybeTensor& excluded,
                         at::IntArrayRef cutoffs, std::optional<int64_t> block) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::rank_metrics", "")
                             .typed<decltype(rank_metrics)>();
  return op.call(queries, candidates, weights, query_groups, group_offsets, group_rows, excluded,
                 cutoffs, block);
}

RankMetrics rank_metrics_of_scores(const Tensor& scores, const Tensor& query_groups,
                                   const Tensor& group_offsets, const Tensor& group_rows,
                                   const MaybeTensor& excluded, at::IntArrayRef cutoffs) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::rank_metrics_of_scores", "")
                             .typed<decltype(rank_metrics_of_scores)>();
  return op.call(scores, query_groups, group_offsets, group_rows, excluded, cutoffs);
}

namespace {

constexpr const char* kName = "rank_metrics";
constexpr const char* kOfScores = "rank_metrics_of_scores";

void check_numbers(const char* op, bool numbers) {
  TORCH_CHECK_VALUE(numbers, op,
                    ": scores must be numbers, got NaN; an input holds NaN or overflows float32");
}

// Which candidates are relevant to a query and which is left out; checked, on the CPU.
class Relevance {
 public:
  Relevance(const char* op, const Tensor& query_groups, const Tensor& group_offsets,
            const Tensor& group_rows, const MaybeTensor& excluded, const Tensor& like,
            int64_t queries, int64_t candidates)
      : groups_(index(op, "query_groups", query_groups, like, {queries}, "[Q]")),
        offsets_(index(op, "group_offsets", group_offsets, like, {-1}, "[G + 1]")),
        rows_(index(op, "group_rows", group_rows, like, {-1}, "[N]")) {
    if (excluded) excluded_ = index(op, "excluded", *excluded, like, {queries}, "[Q]");
    TORCH_CHECK_VALUE(candidates < kMostRankedRows, op,
                      ": candidates must be fewer than 2^32, got ", candidates);
    const int64_t count = offsets_.numel() - 1, total = rows_.numel();
    const int64_t* offset = data<int64_t>(offsets_);
    TORCH_CHECK_VALUE(count >= 0 && offset[0] == 0 && offset[count] == total, op,
                      ": group_offsets must go from 0 to the ", total, " of group_rows, got ",
                      count < 0 ? "none" : c10::str(offset[0], " to ", offset[count]));
    for (int64_t g = 0; g < count; ++g) {
      TORCH_CHECK_VALUE(offset[g] <= offset[g + 1], op, ": group_offsets must not fall, got ",
                        offset[g], " before ", offset[g + 1]);
    }
    for (int64_t g = 0; g < count; ++g) check_rows(op, g, candidates);
    for (int64_t q = 0; q < queries; ++q) {
      const int64_t group = data<int64_t>(groups_)[q];
      TORCH_CHECK_VALUE(0 <= group && group < count, op, ": query_groups must be in [0, ", count,
                        "), got ", group, " for query ", q);
      TORCH_CHECK_VALUE(-1 <= excluded_row(q) && excluded_row(q) < candidates, op,
                        ": excluded must be in [-1, ", candidates, "), got ", excluded_row(q),
                        " for query ", q);
    }
  }

  QueryRelevance operator[](int64_t query) const {
    const int64_t* offset = data<int64_t>(offsets_) + data<int64_t>(groups_)[query];
    return {data<int64_t>(rows_) + offset[0], offset[1] - offset[0], excluded_row(query)};
  }

  // The rows of the largest group that one of the queries [begin, end) has.
  int64_t most(int64_t begin, int64_t end) const {
    int64_t most = 0;
    for (int64_t q = begin; q < end; ++q) most = std::max(most, (*this)[q].count);
    return most;
  }

 private:
  static Tensor index(const char* op, const char* name, const Tensor& tensor, const Tensor& like,
                      std::initializer_list<int64_t> shape, const char* pattern) {
    check_shape(op, name, tensor, shape, pattern);
    check_dtype(op, name, tensor, at::kLong);
    check_same_device(op, name, tensor, "the scores", like);
    return tensor.cpu().contiguous();
  }

  void check_rows(const char* op, int64_t group, int64_t candidates) const {
    int64_t last = -1;
    const int64_t* offset = data<int64_t>(offsets_) + group;
    for (int64_t i = offset[0]; i < offset[1]; ++i) {
      const int64_t row = data<int64_t>(rows_)[i];
      TORCH_CHECK_VALUE(0 <= row && row < candidates, op, ": group_rows must be in [0, ",
                        candidates, "), got ", row, " in group ", group);
      TORCH_CHECK_VALUE(last < row, op, ": group_rows must ascend in each group, got ", last,
                        " before ", row, " in group ", group);
      last = row;
    }
  }

  int64_t excluded_row(int64_t query) const {
    return excluded_.defined() ? data<int64_t>(excluded_)[query] : -1;
  }

  Tensor groups_, offsets_, rows_, excluded_;
};

void check_cutoffs(const char* op, at::IntArrayRef cutoffs) {
  for (const int64_t cutoff : cutoffs) {
    TORCH_CHECK_VALUE(cutoff >= 1, op, ": cutoffs must be at least 1, got ", cutoff);
  }
}

void check_embeddings(at::TensorList queries, at::TensorList candidates, const Tensor& weights,
                      std::optional<int64_t> block) {
  const auto blocks = int64_t(queries.size());
  TORCH_CHECK_VALUE(blocks >= 1, kName, ": queries must hold at least one tensor, got none");
  TORCH_CHECK_VALUE(int64_t(candidates.size()) == blocks, kName, ": candidates must hold ", blocks,
                    " tensors like queries, got ", candidates.size());
  check_shape(kName, "weights", weights, {-1, blocks}, "[W, S] with S the number of queries");
  check_dtype(kName, "weights", weights, at::kFloat);
  check_same_device(kName, "weights", weights, "queries", queries[0]);
  for (int64_t s = 0; s < blocks; ++s) {
    const Tensor &q = queries[s], &c = candidates[s];
    check_shape(kName, "queries", q, {-1, -1}, "[Q, D]");
    check_shape(kName, "queries", q, {queries[0].size(0), -1}, "[Q, D] with one Q");
    check_shape(kName, "candidates", c, {-1, q.size(1)}, "[C, D] with D of queries");
    check_shape(kName, "candidates", c, {candidates[0].size(0), -1}, "[C, D] with one C");
    for (const auto& [name, tensor] : {std::pair("queries", q), std::pair("candidates", c)}) {
      check_dtype(kName, name, tensor, at::kFloat);
      check_same_device(kName, name, tensor, "queries", queries[0]);
    }
  }
  TORCH_CHECK_VALUE(!block || *block >= 1, kName, ": block must be at least 1, got ", *block);
}

RankMetrics empty_metrics(at::IntArrayRef shape, int64_t cutoffs, at::TensorOptions options) {
  std::vector<int64_t> with_cutoffs(shape.begin(), shape.end());
  with_cutoffs.push_back(cutoffs);
  const auto doubles = options.dtype(at::kDouble), longs = options.dtype(at::kLong);
  return {at::empty(shape, doubles), at::empty(shape, doubles), at::empty(with_cutoffs, longs),
          at::empty(with_cutoffs, doubles), at::empty(shape, longs)};
}

QueryMetrics metrics_at(const RankMetrics& metrics, int64_t query, int64_t cutoffs) {
  return {mutable_data<double>(std::get<0>(metrics)) + query,
          mutable_data<double>(std::get<1>(metrics)) + query,
          mutable_data<int64_t>(std::get<2>(metrics)) + query * cutoffs,
          mutable_data<double>(std::get<3>(metrics)) + query * cutoffs,
          mutable_data<int64_t>(std::get<4>(metrics)) + query};
}

// Multiples of 24 fill the tiles of dot_scores_cpu, which take 6 or 8 queries.
int64_t queries_at_a_time(int64_t blocks, int64_t candidates) {
  constexpr int64_t kBytes = 64 << 20, kTiles = 24, kMost = 120;
  const int64_t bytes = blocks * candidates * int64_t(sizeof(float));
  const int64_t fitting = kBytes / std::max<int64_t>(bytes, 1) / kTiles * kTiles;
  return std::clamp(fitting, kTiles, kMost);
}

RankMetrics rank_metrics_cpu(at::TensorList queries, at::TensorList candidates,
                             const Tensor& weights, const Tensor& query_groups,
                             const Tensor& group_offsets, const Tensor& group_rows,
                             const MaybeTensor& excluded, at::IntArrayRef cutoffs,
                             std::optional<int64_t> block) {
  check_embeddings(queries, candidates, weights, block);
  check_cutoffs(kName, cutoffs);
  const int64_t count = queries[0].size(0), length = candidates[0].size(0);
  const auto blocks = int64_t(queries.size());
  const Relevance relevance(kName, query_groups, group_offsets, group_rows, excluded, queries[0],
                            count, length);
  const RankMetrics metrics =
      empty_metrics({weights.size(0), count}, int64_t(cutoffs.size()), queries[0].options());
  std::vector<Tensor> query_rows, candidate_rows;
  for (int64_t s = 0; s < blocks; ++s) {
    query_rows.push_back(dot_rows(queries[s]));
    candidate_rows.push_back(dot_rows(candidates[s]));
  }
  const Tensor w = weights.contiguous();
  const std::vector<int64_t> at_cutoffs = cutoffs.vec();
  const int64_t step =
      std::min(block.value_or(queries_at_a_time(blocks, length)), std::max<int64_t>(count, 1));
  const Tensor scores = at::empty({blocks, step, length}, queries[0].options());
  const auto score_row = [&](int64_t s, int64_t q) {
    return mutable_data<float>(scores) + (s * step + q) * length;
  };
  for (int64_t start = 0; start < count; start += step) {
    const int64_t stop = std::min(start + step, count);
    // Threads share the queries and divide the candidates, so that these are read once.
    constexpr int64_t kGrain = 64;
    parallel_for(0, (length + kGrain - 1) / kGrain, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kGrain, last = std::min(end * kGrain, length);
      for (int64_t s = 0; s < blocks; ++s) {
        const int64_t dims = query_rows[s].size(1);
        dot_scores_cpu(
            {data<float>(query_rows[s]) + start * dims,
             data<float>(candidate_rows[s]) + first * dims, stop - start, last - first, dims},
            score_row(s, 0) + first, length);
      }
    });
    parallel_for(start, stop, 1, [&](int64_t begin, int64_t end) {
      RankCounter counter;
      std::vector<const float*> rows(blocks);
      for (int64_t q = begin; q < end; ++q) {
        for (int64_t s = 0; s < blocks; ++s) rows[s] = score_row(s, q - start);
        for (int64_t i = 0; i < w.size(0); ++i) {
          const QueryScores in = {rows.data(), data<float>(w) + i * blocks, blocks, length};
          const QueryMetrics out = metrics_at(metrics, i * count + q, int64_t(at_cutoffs.size()));
          check_numbers(kName, counter(in, relevance[q], at_cutoffs, out));
        }
      }
    });
  }
  return metrics;
}

RankMetrics rank_metrics_of_scores_cpu(const Tensor& scores, const Tensor& query_groups,
                                       const Tensor& group_offsets, const Tensor& group_rows,
                                       const MaybeTensor& excluded, at::IntArrayRef cutoffs) {
  check_shape(kOfScores, "scores", scores, {-1, -1}, "[Q, C]");
  check_dtype(kOfScores, "scores", scores, at::kFloat);
  check_cutoffs(kOfScores, cutoffs);
  const int64_t count = scores.size(0), length = scores.size(1);
  const Relevance relevance(kOfScores, query_groups, group_offsets, group_rows, excluded, scores,
                            count, length);
  const RankMetrics metrics = empty_metrics({count}, int64_t(cutoffs.size()), scores.options());
  const Tensor rows = scores.contiguous();
  const std::vector<int64_t> at_cutoffs = cutoffs.vec();
  parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    RankCounter counter;
    const float weight = 1;
    for (int64_t q = begin; q < end; ++q) {
      const float* row = data<float>(rows) + q * length;
      const QueryMetrics out = metrics_at(metrics, q, int64_t(at_cutoffs.size()));
      check_numbers(kOfScores, counter({&row, &weight, 1, length}, relevance[q], at_cutoffs, out));
    }
  });
  return metrics;
}

// Rankings that are measured on the device of the scores, by the steps of kernels/rank_counter.h.
// These run on the CPU too, so that the tests reach what is here.
class DeviceRanks {
 public:
  DeviceRanks(const char* op, const Tensor& query_groups, const Tensor& group_offsets,
              const Tensor& group_rows, const MaybeTensor& excluded, at::IntArrayRef cutoffs,
              const Tensor& like, int64_t queries, int64_t candidates)
      : op_(op),
        relevance_(op, query_groups, group_offsets, group_rows, excluded, like, queries,
                   candidates),
        groups_(query_groups.contiguous()),
        offsets_(group_offsets.contiguous()),
        rows_(group_rows.contiguous()),
        cutoffs_(at::tensor(cutoffs, at::kLong).to(like.device())),
        queries_(queries),
        candidates_(candidates) {
#ifndef PLACKET_CUDA
    TORCH_CHECK_NOT_IMPLEMENTED(!like.is_cuda(), op,
                                ": scores must be on cpu in a placket that was built without "
                                "CUDA, got ",
                                like.device());
#endif
    if (excluded) excluded_ = excluded->contiguous();
  }

  // Queries at a time, of whose scores there are `copies`; keys are sorted beside their places.
  int64_t step(int64_t copies) const {
    constexpr int64_t kBytes = 256 << 20, kSorting = 64;
    const int64_t each = 4 * copies * candidates_ + kSorting * relevance_.most(0, queries_);
    return std::max<int64_t>(kBytes / std::max<int64_t>(each, 1), 1);
  }

  // Measures the queries from `start` on, of scores [B, C]; `metrics` of the first of them.
  void measure(const Tensor& scores, int64_t start, const QueryMetrics& metrics) const {
    const int64_t count = scores.size(0), most = relevance_.most(start, start + count);
    Tensor keys = at::empty({count, most}, groups_.options());
    const Tensor counters =
        at::zeros({count, rank_counters(most)}, groups_.options().dtype(at::kInt));
    RankBlock in = {data<float>(scores),
                    count,
                    candidates_,
                    data<int64_t>(groups_) + start,
                    data<int64_t>(offsets_),
                    data<int64_t>(rows_),
                    excluded_.defined() ? data<int64_t>(excluded_) + start : nullptr,
                    most,
                    mutable_data<uint64_t>(keys),
                    mutable_data<uint32_t>(counters),
                    data<int64_t>(cutoffs_),
                    cutoffs_.size(0),
                    metrics};
    write_keys(in);
    if (most > 0) {
      // ATen sorts signed numbers; with the first bit turned these have the order of the keys.
      constexpr int64_t kFirstBit = std::numeric_limits<int64_t>::min();
      keys = std::get<0>(keys.bitwise_xor_(kFirstBit).sort(1)).bitwise_xor_(kFirstBit).contiguous();
      in.keys = mutable_data<uint64_t>(keys);
    }
    measure_block(in);
  }

  // Waits for the device.
  void check(const RankMetrics& metrics) const {
    check_numbers(op_, !std::get<0>(metrics).isnan().any().item<bool>());
  }

 private:
  void write_keys(const RankBlock& in) const {
#ifdef PLACKET_CUDA
    if (groups_.is_cuda()) {
      return check_launch(op_, launch_write_rank_keys(in, current_stream(groups_)));
    }
#endif
    write_rank_keys_cpu(in);
  }

  void measure_block(const RankBlock& in) const {
#ifdef PLACKET_CUDA
    if (groups_.is_cuda()) {
      return check_launch(op_, launch_measure_rank_block(in, current_stream(groups_)));
    }
#endif
    measure_rank_block_cpu(in);
  }

  const char* op_;
  Relevance relevance_;
  Tensor groups_, offsets_, rows_, excluded_, cutoffs_;
  int64_t queries_, candidates_;
};

RankMetrics rank_metrics_cuda(at::TensorList queries, at::TensorList candidates,
                              const Tensor& weights, const Tensor& query_groups,
                              const Tensor& group_offsets, const Tensor& group_rows,
                              const MaybeTensor& excluded, at::IntArrayRef cutoffs,
                              std::optional<int64_t> block) {
  check_embeddings(queries, candidates, weights, block);
  check_cutoffs(kName, cutoffs);
  const at::NoTF32Guard full_float32;
  const c10::OptionalDeviceGuard guard(queries[0].device());
  const int64_t count = queries[0].size(0), length = candidates[0].size(0);
  const auto blocks = int64_t(queries.size()), at_cutoffs = int64_t(cutoffs.size());
  const DeviceRanks ranks(kName, query_groups, group_offsets, group_rows, excluded, cutoffs,
                          queries[0], count, length);
  const RankMetrics metrics =
      empty_metrics({weights.size(0), count}, at_cutoffs, queries[0].options());
  const int64_t step = block.value_or(ranks.step(blocks + 2));  // and a sum and a product of it
  for (int64_t start = 0; start < count; start += step) {
    const int64_t stop = std::min(start + step, count);
    std::vector<Tensor> scores;
    for (int64_t s = 0; s < blocks; ++s) {
      scores.push_back(at::mm(queries[s].slice(0, start, stop), candidates[s].t()));
    }
    for (int64_t i = 0; i < weights.size(0); ++i) {
      const Tensor weight = weights.select(0, i);
      Tensor sum = weight.select(0, 0) * scores[0];
      for (int64_t s = 1; s < blocks; ++s) sum += weight.select(0, s) * scores[s];
      ranks.measure(sum, start, metrics_at(metrics, i * count + start, at_cutoffs));
    }
  }
  ranks.check(metrics);
  return metrics;
}

RankMetrics rank_metrics_of_scores_cuda(const Tensor& scores, const Tensor& query_groups,
                                        const Tensor& group_offsets, const Tensor& group_rows,
                                        const MaybeTensor& excluded, at::IntArrayRef cutoffs) {
  check_shape(kOfScores, "scores", scores, {-1, -1}, "[Q, C]");
  check_dtype(kOfScores, "scores", scores, at::kFloat);
  check_cutoffs(kOfScores, cutoffs);
  const c10::OptionalDeviceGuard guard(scores.device());
  const int64_t count = scores.size(0), at_cutoffs = int64_t(cutoffs.size());
  const DeviceRanks ranks(kOfScores, query_groups, group_offsets, group_rows, excluded, cutoffs,
                          scores, count, scores.size(1));
  const RankMetrics metrics = empty_metrics({count}, at_cutoffs, scores.options());
  const int64_t step = ranks.step(1);
  for (int64_t start = 0; start < count; start += step) {
    const Tensor part = scores.slice(0, start, std::min(start + step, count)).contiguous();
    ranks.measure(part, start, metrics_at(metrics, start, at_cutoffs));
  }
  ranks.check(metrics);
  return metrics;
}

RankMetrics rank_metrics_autocast(at::TensorList queries, at::TensorList candidates,
                                  const Tensor& weights, const Tensor& query_groups,
                                  const Tensor& group_offsets, const Tensor& group_rows,
                                  const MaybeTensor& excluded, at::IntArrayRef cutoffs,
                                  std::optional<int64_t> block) {
  const BelowAutocast below;
  return rank_metrics(at_least_float32(queries), at_least_float32(candidates),
                      at_least_float32(weights), query_groups, group_offsets, group_rows, excluded,
                      cutoffs, block);
}

RankMetrics rank_metrics_of_scores_autocast(const Tensor& scores, const Tensor& query_groups,
                                            const Tensor& group_offsets, const Tensor& group_rows,
                                            const MaybeTensor& excluded, at::IntArrayRef cutoffs) {
  const BelowAutocast below;
  return rank_metrics_of_scores(at_least_float32(scores), query_groups, group_offsets, group_rows,
                                excluded, cutoffs);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "rank_metrics(Tensor[] queries, Tensor[] candidates, Tensor weights, Tensor query_groups, "
      "Tensor group_offsets, Tensor group_rows, Tensor? excluded, int[] cutoffs, int? block=None) "
      "-> (Tensor average_precision, Tensor expected_average_precision, Tensor hits, Tensor "
      "precision_sum, Tensor first)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "rank_metrics_of_scores(Tensor scores, Tensor query_groups, Tensor group_offsets, Tensor "
      "group_rows, Tensor? excluded, int[] cutoffs) -> (Tensor average_precision, Tensor "
      "expected_average_precision, Tensor hits, Tensor precision_sum, Tensor first)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("rank_metrics", rank_metrics_cpu);
  m.impl("rank_metrics_of_scores", rank_metrics_of_scores_cpu);
}
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("rank_metrics", rank_metrics_cuda);
  m.impl("rank_metrics_of_scores", rank_metrics_of_scores_cuda);
}
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("rank_metrics", torch::autograd::autogradNotImplementedFallback());
  m.impl("rank_metrics_of_scores", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) {
  m.impl("rank_metrics", rank_metrics_autocast);
  m.impl("rank_metrics_of_scores", rank_metrics_of_scores_autocast);
}
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) {
  m.impl("rank_metrics", rank_metrics_autocast);
  m.impl("rank_metrics_of_scores", rank_metrics_of_scores_autocast);
}

}  // namespace placket
