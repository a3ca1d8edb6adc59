#include "retrieval/screen.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "base/bfloat16.h"
#include "base/dispatch.h"
#include "base/simd.h"
#include "kernels/dot_scores.h"
#include "kernels/int8_scores.h"
#include "retrieval/quantize.h"
#include "retrieval/ranking.h"

namespace placket {
namespace {

constexpr int kOffset = 64;  // makes codes of queries, in [-63, 63], unsigned
constexpr float kLevels = 63;

// With rows, queries and weights below kMostNorm an operation underflows by less than 2^-126, and
// what follows multiplies that by less than 2^66.
constexpr float kUnderflow = 0x1p-60f;
constexpr float kLeastStep = 0x1p-100f;

// Above the roundings of a bound's own arithmetic.
constexpr double kUp = 1 + 0x1p-16;

int64_t place(int64_t query) { return query + query / Screen::kBlock; }

PLACKET_SIMD void add_upper(const int32_t* scores, const int32_t* sums, const float* scale,
                            const float* residual, const float* norm, int64_t count, float step,
                            float spread, float slope, float* upper) {
  for (int64_t i = 0; i < count; ++i) {
    const float dot = step * (scale[i] * float(scores[i] - kOffset * sums[i]));
    upper[i] += dot + (spread * residual[i] + slope * norm[i]);
  }
}

PLACKET_SIMD void add_upper(const float* dots, const float* residual, const float* norm,
                            int64_t count, float step, float spread, float slope, float* upper) {
  for (int64_t i = 0; i < count; ++i) {
    upper[i] += step * dots[i] + (spread * residual[i] + slope * norm[i]);
  }
}

PLACKET_SIMD void widen(const BFloat16* values, int64_t count, float* wide) {
  for (int64_t i = 0; i < count; ++i) wide[i] = values[i];
}

// What a row of float32 becomes as codes of at most `levels`, and the length of what that loses.
struct Rounded {
  float step;
  double lost;
};
template <class Code>
Rounded round_query(const float* query, int64_t dims, float levels, int offset, Code* codes) {
  float most = 0;
  for (int64_t d = 0; d < dims; ++d) most = std::max(most, std::abs(query[d]));
  float step = most / levels;
  if (step < kLeastStep) step = 0;
  double square = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const float code = step > 0 ? std::nearbyint(query[d] / step) : 0.0f;
    const double error = double(query[d]) - double(step) * code;
    square += error * error;
    codes[d] = Code(int(code) + offset);
  }
  return {step, std::sqrt(square)};
}

// To [3, rows.count].
void gather_bounds(const at::Tensor& bounds, const RowSpan& rows, std::vector<float>& gathered) {
  gathered.resize(3 * rows.count);
  const auto* from = data<float>(bounds);
  for (int64_t i = 0; i < rows.count; ++i) {
    for (int64_t b = 0; b < 3; ++b) gathered[b * rows.count + i] = from[3 * rows[i] + b];
  }
}

}  // namespace

Screen::Screen(at::TensorList queries, at::TensorList codes, at::TensorList bounds,
               at::ArrayRef<double> weights) {
  int64_t dims = 0;
  for (const at::Tensor& part : queries) dims = std::max(dims, part.size(1));
  const auto spaces = int64_t(queries.size());
  const double rounding = double(2 * dims + 4 * spaces + 64) * 0x1p-24;
  for (int64_t s = 0; s < spaces; ++s) {
    Space space;
    space.codes = codes[s];
    space.bounds = bounds[s];
    set_terms(space, queries[s].contiguous(), double(float(weights[s])), rounding);
    spaces_.push_back(std::move(space));
    refines_ &= codes[s].scalar_type() == at::kChar;
  }
}

void Screen::set_terms(Space& space, const at::Tensor& queries, double weight, double rounding) {
  const int64_t count = queries.size(0), dims = queries.size(1);
  const bool int8 = space.codes.scalar_type() == at::kChar;
  if (int8) {
    space.padded = (dims + kPanelStep - 1) / kPanelStep * kPanelStep;
    space.packed.assign((place(count) + 1) * space.padded, 1);
    space.fine.resize(count * dims);
    space.fine_terms.resize(count);
  } else {
    space.queries = dot_rows(queries);
    space.padded = space.queries.size(1);
  }
  space.terms.resize(count);
  for (int64_t q = 0; q < count; ++q) {
    const float* query = data<float>(queries) + q * dims;
    double square = 0;
    for (int64_t d = 0; d < dims; ++d) square += double(query[d]) * query[d];
    const double norm = std::sqrt(square), size = std::abs(weight) * kUp;
    // Also false for NaN.
    if (!(norm <= kMostNorm && size <= kMostNorm && norm * size <= kMostNorm)) {
      holds_ = false;
      return;
    }
    const auto terms = [&](const Rounded& rounded) {
      const double lost = rounded.lost + rounding * (norm + rounded.lost);
      return Terms{float(weight * rounded.step), float(size * norm), float(size * lost)};
    };
    if (!int8) {
      space.terms[q] = terms({1, 0});
      continue;
    }
    uint8_t* packed = space.packed.data() + place(q) * space.padded;
    space.terms[q] = terms(round_query(query, dims, kLevels, kOffset, packed));
    const auto levels = float(int8_dot_most(dims));
    space.fine_terms[q] = terms(round_query(query, dims, levels, 0, space.fine.data() + q * dims));
  }
}

float Screen::refined(int64_t query, int64_t row) const {
  float upper = kUnderflow * float(spaces_.size());
  for (const Space& space : spaces_) {
    const int64_t dims = space.codes.size(1);
    const auto* codes = data<int8_t>(space.codes) + row * dims;
    const auto dot = float(int8_dot(space.fine.data() + query * dims, codes, dims));
    const float* bounds = data<float>(space.bounds) + 3 * row;
    const Terms& terms = space.fine_terms[query];
    upper += terms.step * (bounds[0] * dot) + (terms.spread * bounds[1] + terms.slope * bounds[2]);
  }
  return upper;
}

void Screen::upper_bounds(int64_t begin, int64_t end, const RowSpan& rows, Scratch& scratch,
                          float* upper) const {
  std::fill_n(upper, (end - begin) * rows.count, kUnderflow * float(spaces_.size()));
  for (const Space& space : spaces_) {
    gather_bounds(space.bounds, rows, scratch.bounds);
    if (space.codes.scalar_type() == at::kChar) {
      add_int8(space, begin, end, rows, scratch, upper);
    } else {
      add_bfloat16(space, begin, end, rows, scratch, upper);
    }
  }
}

void Screen::add_int8(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                      Scratch& scratch, float* upper) const {
  const int64_t dims = space.codes.size(1), padded = space.padded;
  const int64_t stride = (rows.count + kPanelItems - 1) / kPanelItems * kPanelItems;
  const int64_t queries = end - begin;
  scratch.panel.resize(kPanelItems * padded);
  scratch.sums.resize((queries + 1) * stride);
  const auto* codes = data<int8_t>(space.codes);
  for (int64_t first = 0; first < rows.count; first += kPanelItems) {
    const int64_t count = std::min(kPanelItems, rows.count - first);
    const int8_t* items[kPanelItems];
    for (int64_t i = 0; i < count; ++i) items[i] = codes + rows[first + i] * dims;
    pack_int8_panel(items, count, dims, scratch.panel.data());
    int8_scores(space.packed.data() + place(begin) * padded, queries + 1, padded,
                scratch.panel.data(), scratch.sums.data() + first, stride);
  }
  const int32_t* ones = scratch.sums.data() + queries * stride;
  const float* bounds = scratch.bounds.data();
  for (int64_t q = 0; q < queries; ++q) {
    const Terms& terms = space.terms[begin + q];
    add_upper(scratch.sums.data() + q * stride, ones, bounds, bounds + rows.count,
              bounds + 2 * rows.count, rows.count, terms.step, terms.spread, terms.slope,
              upper + q * rows.count);
  }
}

void Screen::add_bfloat16(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                          Scratch& scratch, float* upper) const {
  const int64_t dims = space.codes.size(1), padded = space.padded, queries = end - begin;
  // So many rows stay in the second-level cache as float32.
  constexpr int64_t kTileFloats = 1 << 15;
  const int64_t tile = std::max<int64_t>(kTileFloats / std::max<int64_t>(padded, 8) / 8, 1) * 8;
  scratch.rows.resize(tile * padded);
  scratch.dots.resize(queries * rows.count);
  const auto* codes = data<BFloat16>(space.codes);
  for (int64_t first = 0; first < rows.count; first += tile) {
    const int64_t count = std::min(tile, rows.count - first);
    for (int64_t i = 0; i < count; ++i) {
      float* to = scratch.rows.data() + i * padded;
      widen(codes + rows[first + i] * dims, dims, to);
      std::fill(to + dims, to + padded, 0.0f);
    }
    dot_scores_cpu(
        {data<float>(space.queries) + begin * padded, scratch.rows.data(), queries, count, padded},
        scratch.dots.data() + first, rows.count);
  }
  const float* bounds = scratch.bounds.data();
  for (int64_t q = 0; q < queries; ++q) {
    const Terms& terms = space.terms[begin + q];
    add_upper(scratch.dots.data() + q * rows.count, bounds + rows.count, bounds + 2 * rows.count,
              rows.count, terms.step, terms.spread, terms.slope, upper + q * rows.count);
  }
}

}  // namespace placket
