#include "retrieval/screen.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "base/bfloat16.h"
#include "base/dispatch.h"
#include "base/simd.h"
#include "kernels/dot_scores.h"
#include "kernels/panel_scores.h"
#include "retrieval/quantize.h"
#include "retrieval/ranking.h"

namespace placket {
namespace {

// A query's codes have one digit, in [-63, 63], or a second in [-64, 63]; kOffset makes both
// unsigned.
constexpr int kOffset = 64, kBase = 128;
constexpr float kLevels = 63;

// With rows, queries and weights below kMostNorm an operation underflows by less than 2^-126, and
// what follows multiplies that by less than 2^66.
constexpr float kUnderflow = 0x1p-60f;
constexpr float kLeastStep = 0x1p-100f;

// Above the roundings of a bound's own arithmetic.
constexpr double kUp = 1 + 0x1p-16;

// So few bfloat16 queries are faster without a panel.
constexpr int64_t kFewQueries = 4;

PLACKET_SIMD void add_upper(const int32_t* scores, const int32_t* sums, const float* scale,
                            const float* residual, const float* norm, int64_t count, float step,
                            float spread, float slope, float* upper) {
  for (int64_t i = 0; i < count; ++i) {
    const float dot = step * (scale[i] * float(scores[i] - kOffset * sums[i]));
    upper[i] += dot + (spread * residual[i] + slope * norm[i]);
  }
}

PLACKET_SIMD void add_upper(const int32_t* high, const int32_t* low, const int32_t* sums,
                            const float* scale, const float* residual, const float* norm,
                            int64_t count, float step, float spread, float slope, float* upper) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t offset = kOffset * sums[i];
    const float sum = float(kBase) * float(high[i] - offset) + float(low[i] - offset);
    upper[i] += step * (scale[i] * sum) + (spread * residual[i] + slope * norm[i]);
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

// Four rows at a time, so that sums do not wait for each other.
constexpr int64_t kRowsAtOnce = 4;
PLACKET_SIMD void dots_of_four(const float* query, const BFloat16* const* rows, int64_t dims,
                               float* dots) {
  const BFloat16 *a = rows[0], *b = rows[1], *c = rows[2], *e = rows[3];
  float sum_a = 0, sum_b = 0, sum_c = 0, sum_e = 0;
#pragma omp simd reduction(+ : sum_a, sum_b, sum_c, sum_e)
  for (int64_t d = 0; d < dims; ++d) {
    sum_a += query[d] * a[d];
    sum_b += query[d] * b[d];
    sum_c += query[d] * c[d];
    sum_e += query[d] * e[d];
  }
  dots[0] = sum_a;
  dots[1] = sum_b;
  dots[2] = sum_c;
  dots[3] = sum_e;
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

Rounded round_to_digits(const float* query, int64_t dims, int64_t digits, int64_t padded,
                        uint8_t* packed) {
  if (digits == 1) return round_query(query, dims, kLevels, kOffset, packed);
  constexpr int kSecond = kBase / 2;
  std::vector<int16_t> codes(dims);
  const auto rounded = round_query(query, dims, kLevels * kBase + kSecond - 1,
                                   kOffset * kBase + kSecond, codes.data());
  for (int64_t d = 0; d < dims; ++d) {
    packed[d] = uint8_t(codes[d] / kBase);
    packed[padded + d] = uint8_t(codes[d] % kBase);
  }
  return rounded;
}

Rounded round_query(const float* query, int64_t dims, BFloat16* rounded) {
  double square = 0;
  for (int64_t d = 0; d < dims; ++d) {
    rounded[d] = BFloat16(query[d]);
    const double error = double(query[d]) - double(float(rounded[d]));
    square += error * error;
  }
  return {1, std::sqrt(square)};
}

// How far apart the scores of two queries stand: whole panels.
int64_t panel_stride(const RowSpan& rows) {
  return (rows.count + kPanelItems - 1) / kPanelItems * kPanelItems;
}

// Calls scores(first, panel) for the rows kPanelItems at a time.
template <class Scores>
void each_panel(const at::Tensor& codes, const RowSpan& rows, std::vector<Screen::Line>& panel,
                const Scores& scores) {
  const int64_t bytes = codes.size(1) * codes.element_size();
  const auto* from = static_cast<const char*>(codes.const_data_ptr());
  panel.resize(panel_padded(bytes) / kPanelRow * kPanelItems);
  for (int64_t first = 0; first < rows.count; first += kPanelItems) {
    const int64_t count = std::min(kPanelItems, rows.count - first);
    const void* items[kPanelItems];
    for (int64_t i = 0; i < count; ++i) items[i] = from + rows[first + i] * bytes;
    pack_panel(items, count, bytes, panel.data());
    scores(first, panel.data());
  }
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
    refines_ &= codes[s].scalar_type() == at::kChar && !multiplies_int8();
  }
}

void Screen::set_terms(Space& space, const at::Tensor& queries, double weight, double rounding) {
  const int64_t count = queries.size(0), dims = queries.size(1);
  const bool int8 = space.codes.scalar_type() == at::kChar;
  space.padded = panel_padded(dims * space.codes.element_size());
  const auto bytes = queries.options().dtype(at::kByte);
  if (int8) {
    space.digits = multiplies_int8() ? 2 : 1;
    space.packed = at::zeros({count, space.digits, space.padded}, bytes);
    space.ones = at::ones({1, space.padded}, bytes);
    if (space.digits == 1) {
      space.fine.resize(count * dims);
      space.fine_terms.resize(count);
    }
  } else if (count > kFewQueries && multiplies_bfloat16()) {
    space.packed = at::zeros({count, space.padded}, bytes);
  } else {
    space.queries = dot_rows(queries);
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
    if (!space.packed.defined()) {
      space.terms[q] = terms({1, 0});
      continue;
    }
    uint8_t* packed = mutable_data<uint8_t>(space.packed) + q * space.digits * space.padded;
    if (!int8) {
      space.terms[q] = terms(round_query(query, dims, reinterpret_cast<BFloat16*>(packed)));
      continue;
    }
    space.terms[q] = terms(round_to_digits(query, dims, space.digits, space.padded, packed));
    if (space.digits > 1) continue;
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
  const int64_t padded = space.padded, queries = end - begin, sets = queries * space.digits;
  const int64_t stride = panel_stride(rows);
  scratch.sums.resize((sets + 1) * stride);
  int32_t* sums = scratch.sums.data();
  int32_t* ones = sums + sets * stride;
  const auto* packed = data<uint8_t>(space.packed) + begin * space.digits * padded;
  each_panel(space.codes, rows, scratch.panel, [&](int64_t first, const void* panel) {
    const auto* items = static_cast<const int8_t*>(panel);
    int8_scores(packed, sets, padded, items, sums + first, stride);
    int8_scores(data<uint8_t>(space.ones), 1, padded, items, ones + first, stride);
  });
  const float* bounds = scratch.bounds.data();
  for (int64_t q = 0; q < queries; ++q) {
    const Terms& terms = space.terms[begin + q];
    const float *residual = bounds + rows.count, *norm = residual + rows.count;
    const int32_t* high = sums + q * space.digits * stride;
    float* to = upper + q * rows.count;
    if (space.digits == 1) {
      add_upper(high, ones, bounds, residual, norm, rows.count, terms.step, terms.spread,
                terms.slope, to);
    } else {
      add_upper(high, high + stride, ones, bounds, residual, norm, rows.count, terms.step,
                terms.spread, terms.slope, to);
    }
  }
}

void Screen::widened_dots(const Space& space, int64_t begin, int64_t queries, const RowSpan& rows,
                          Scratch& scratch) {
  const int64_t dims = space.codes.size(1), padded = space.queries.size(1);
  const auto* codes = data<BFloat16>(space.codes);
  // So many rows stay in the second-level cache as float32.
  constexpr int64_t kTileFloats = 1 << 15;
  const int64_t tile = std::max<int64_t>(kTileFloats / std::max<int64_t>(padded, 8) / 8, 1) * 8;
  scratch.rows.resize(tile * padded);
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
}

void Screen::dots_of_few(const Space& space, int64_t begin, int64_t queries, const RowSpan& rows,
                         float* dots) {
  const int64_t dims = space.codes.size(1), padded = space.queries.size(1);
  const auto* codes = data<BFloat16>(space.codes);
  for (int64_t i = 0; i < rows.count; i += kRowsAtOnce) {
    const BFloat16* four[kRowsAtOnce];
    float four_dots[kRowsAtOnce];
    for (int64_t r = 0; r < kRowsAtOnce; ++r) {
      four[r] = codes + rows[std::min(i + r, rows.count - 1)] * dims;
    }
    for (int64_t q = 0; q < queries; ++q) {
      dots_of_four(data<float>(space.queries) + (begin + q) * padded, four, dims, four_dots);
      std::copy_n(four_dots, std::min(kRowsAtOnce, rows.count - i), dots + q * rows.count + i);
    }
  }
}

void Screen::add_bfloat16(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                          Scratch& scratch, float* upper) const {
  const int64_t padded = space.padded, queries = end - begin;
  int64_t stride = rows.count;
  if (space.packed.defined()) {
    stride = panel_stride(rows);
    scratch.dots.resize(queries * stride);
    const auto* packed = data<uint8_t>(space.packed) + begin * padded;
    each_panel(space.codes, rows, scratch.panel, [&](int64_t first, const void* panel) {
      bfloat16_scores(reinterpret_cast<const BFloat16*>(packed), queries, padded,
                      static_cast<const BFloat16*>(panel), scratch.dots.data() + first, stride);
    });
  } else {
    scratch.dots.resize(queries * stride);
    if (queries <= kFewQueries) {
      dots_of_few(space, begin, queries, rows, scratch.dots.data());
    } else {
      widened_dots(space, begin, queries, rows, scratch);
    }
  }
  const float* bounds = scratch.bounds.data();
  for (int64_t q = 0; q < queries; ++q) {
    const Terms& terms = space.terms[begin + q];
    add_upper(scratch.dots.data() + q * stride, bounds + rows.count, bounds + 2 * rows.count,
              rows.count, terms.step, terms.spread, terms.slope, upper + q * rows.count);
  }
}

}  // namespace placket
