#include "retrieval/average_precision.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "base/checks.h"
#include "retrieval/rank_metrics.h"

namespace placket {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor> value_groups(const Tensor& query_values,
                                                const Tensor& candidate_values) {
  constexpr const char* kName = "value_groups";
  check_shape(kName, "query_values", query_values, {-1}, "[Q]");
  check_shape(kName, "candidate_values", candidate_values, {-1}, "[C]");
  check_dtype(kName, "query_values", query_values, at::kLong);
  check_dtype(kName, "candidate_values", candidate_values, at::kLong);
  check_same_device(kName, "candidate_values", candidate_values, "query_values", query_values);
  const auto [values, rows] = candidate_values.sort(/*stable=*/true, /*dim=*/0,
                                                    /*descending=*/false);
  const Tensor wanted = query_values.contiguous();
  const Tensor begin = at::searchsorted(values, wanted);
  const Tensor end = at::searchsorted(values, wanted, /*out_int32=*/false, /*right=*/true);
  const at::Scalar count(candidate_values.sym_size(0));
  return {at::where(begin < end, end - 1, count),
          at::cat({at::searchsorted(values, values), at::full({2}, count, rows.options())}), rows};
}

Tensor average_precision(const Tensor& queries, const Tensor& candidates,
                         const Tensor& query_values, const Tensor& candidate_values,
                         std::optional<int64_t> block) {
  const auto [query_groups, group_offsets, group_rows] =
      value_groups(query_values, candidate_values);
  const Tensor weights = at::ones({1, 1}, queries.options().dtype(at::kFloat));
  const RankMetrics metrics = rank_metrics({queries}, {candidates}, weights, query_groups,
                                           group_offsets, group_rows, std::nullopt, {}, block);
  return std::get<0>(metrics)[0];
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "value_groups(Tensor query_values, Tensor candidate_values) -> (Tensor query_groups, Tensor "
      "group_offsets, Tensor group_rows)",
      value_groups, {at::Tag::pt2_compliant_tag});
  m.def(
      "average_precision(Tensor queries, Tensor candidates, Tensor query_values, Tensor "
      "candidate_values, int? block=None) -> Tensor",
      average_precision, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
