#include "retrieval/row_scorer.h"

#include <algorithm>

#include "base/dispatch.h"
#include "base/simd.h"
#include "kernels/dot_scores.h"
#include "retrieval/ranking.h"

namespace placket {
namespace {

PLACKET_SIMD void scale(float* scores, int64_t count, float weight) {
  for (int64_t i = 0; i < count; ++i) scores[i] *= weight;
}

PLACKET_SIMD void add_scaled(float* scores, const float* dots, int64_t count, float weight) {
  for (int64_t i = 0; i < count; ++i) scores[i] += weight * dots[i];
}

}  // namespace

RowScorer::RowScorer(at::TensorList queries, at::TensorList database,
                     at::ArrayRef<double> weights) {
  for (size_t s = 0; s < queries.size(); ++s) {
    const at::Tensor padded = dot_rows(queries[s]);
    spaces_.push_back(
        {padded, data<float>(database[s]), queries[s].size(1), padded.size(1), float(weights[s])});
  }
}

void RowScorer::dots(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                     Scratch& scratch, float* scores) {
  const int64_t dims = space.dims, padded = space.padded;
  const float* queries = data<float>(space.queries) + begin * padded;
  if (end - begin == 1 && rows.listed != nullptr && dims == padded) {
    scratch.listed.resize(rows.count);
    for (int64_t i = 0; i < rows.count; ++i) scratch.listed[i] = space.rows + rows[i] * dims;
    return listed_scores_cpu(queries, scratch.listed.data(), rows.count, dims, scores);
  }
  const float* items = space.rows + rows.first * dims;
  if (rows.listed != nullptr || dims != padded) {
    scratch.rows.resize(rows.count * padded);
    float* to = scratch.rows.data();
    for (int64_t i = 0; i < rows.count; ++i, to += padded) {
      std::copy_n(space.rows + rows[i] * dims, dims, to);
      std::fill(to + dims, to + padded, 0.0f);
    }
    items = scratch.rows.data();
  }
  dot_scores_cpu({queries, items, end - begin, rows.count, padded}, scores, rows.count);
}

void RowScorer::score(int64_t begin, int64_t end, const RowSpan& rows, Scratch& scratch,
                      float* scores) const {
  const int64_t count = (end - begin) * rows.count;
  dots(spaces_[0], begin, end, rows, scratch, scores);
  if (spaces_[0].weight != 1.0f) scale(scores, count, spaces_[0].weight);
  for (size_t s = 1; s < spaces_.size(); ++s) {
    scratch.dots.resize(count);
    dots(spaces_[s], begin, end, rows, scratch, scratch.dots.data());
    add_scaled(scores, scratch.dots.data(), count, spaces_[s].weight);
  }
}

void RowScorer::parts(int64_t query, const RowSpan& rows, Scratch& scratch, float* parts) const {
  scratch.dots.resize(rows.count);
  for (int64_t s = 0; s < spaces(); ++s) {
    dots(spaces_[s], query, query + 1, rows, scratch, scratch.dots.data());
    for (int64_t i = 0; i < rows.count; ++i) parts[i * spaces() + s] = scratch.dots[i];
  }
}

}  // namespace placket
