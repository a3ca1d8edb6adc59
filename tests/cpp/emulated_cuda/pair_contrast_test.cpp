#include "kernels/pair_contrast.h"

#include "values.h"

namespace placket {
namespace {

constexpr int64_t kRows = 37, kColumns = 300, kSplit = 20;  // of two strips
constexpr double kScale = 3, kBias = -0.5;

// Labels of which some are left out, or sets, or a relation with a mask.
struct Pairs {
  std::vector<int64_t> x, y;
  std::vector<uint8_t> relation, valid;
  PairRelation pairs = {};

  explicit Pairs(int kind) {
    std::mt19937 random(5);
    pairs.columns = kColumns;
    pairs.words = kind == 2 ? 2 : 0;
    if (kind == 1 || kind == 2) {
      const int64_t width = kind;
      x = whole_values(kRows * width, 6, random);
      y = whole_values(kColumns * width, 6, random);
      if (kind == 1) x[3] = y[5] = y[6] = -1;
      if (kind == 2) y[8] = y[9] = 0;
      pairs.x_labels = x.data();
      pairs.y_labels = y.data();
    }
    if (kind == 3) {
      for (int64_t i = 0; i < kRows * kColumns; ++i) {
        relation.push_back(uint8_t(random() % 4 == 0));
        valid.push_back(uint8_t(random() % 8 != 0 && i / kColumns != 7 && i % kColumns != 11));
      }
      pairs.relation = relation.data();
      pairs.valid = valid.data();
    }
  }
};

template <class A>
struct Given {
  std::mt19937 random{6};
  std::vector<A> products = normal_values<A>(kRows * kColumns, random);
  A scale = A(kScale), bias = A(kBias);

  double logit(int64_t i, int64_t j) const {
    return double(products[i * kColumns + j]) * kScale + kBias;
  }

  template <class F>
  void each_strip(const PairRelation& pairs, const F& f) const {
    for (const auto& [first, rows] : {std::pair(int64_t(0), kSplit), {kSplit, kRows - kSplit}}) {
      f(PairStrip<A>{products.data() + first * kColumns, first, rows, kColumns, &scale, &bias,
                     pairs});
    }
  }
};

// By the definition, for rows (along columns) or columns.
template <class A>
void statistics(const Given<A>& given, const PairRelation& pairs, bool of_rows, std::vector<A>& lse,
                std::vector<A>& sum, std::vector<A>& count) {
  for (int64_t own = 0; own < (of_rows ? kRows : kColumns); ++own) {
    double total = 0, positive = 0, found = 0;
    for (int64_t other = 0; other < (of_rows ? kColumns : kRows); ++other) {
      const int64_t i = of_rows ? own : other, j = of_rows ? other : own;
      const PairKind kind = pairs.kind(i, j);
      if (kind == kLeftOut) continue;
      total += std::exp(given.logit(i, j));
      if (kind == kPositive) {
        positive += given.logit(i, j);
        found += 1;
      }
    }
    lse.push_back(A(std::log(total)));
    sum.push_back(A(positive));
    count.push_back(A(found));
  }
}

// -infinity where nothing is compared.
template <class A>
void expect_lse(const std::vector<A>& found, std::vector<A> expected) {
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isinf(expected[i])) {
      ASSERT_EQ(found[i], expected[i]) << i;
      expected[i] = 0;
    }
  }
  std::vector<A> rest = found;
  for (A& value : rest) value = std::isinf(value) ? A(0) : value;
  expect_close(rest, expected, kRounding<A>);
}

template <class A>
void expect_info_nce() {
  for (int kind = 0; kind < 4; ++kind) {
    const Pairs made(kind);
    const Given<A> given;
    std::vector<A> lse, sum, count, column_lse, column_sum, column_count;
    statistics(given, made.pairs, true, lse, sum, count);
    statistics(given, made.pairs, false, column_lse, column_sum, column_count);

    auto found_lse = unwritten<A>(kRows), found_sum = found_lse, found_count = found_lse;
    std::vector<A> high(kColumns, -INFINITY), exps(kColumns), sums(kColumns), counts(kColumns);
    given.each_strip(made.pairs, [&](const PairStrip<A>& strip) {
      const PairStatistics<A> rows = {found_lse.data() + strip.first,
                                      found_sum.data() + strip.first,
                                      found_count.data() + strip.first};
      ASSERT_EQ(launch_info_nce_rows(strip, rows, nullptr), nullptr);
      const PairColumns<A> columns = {high.data(), exps.data(), sums.data(), counts.data()};
      ASSERT_EQ(launch_info_nce_columns(strip, columns, nullptr), nullptr);
    });
    expect_lse(found_lse, lse);
    expect_close(found_sum, sum, kRounding<A>);
    EXPECT_EQ(found_count, count);
    for (int64_t j = 0; j < kColumns; ++j) high[j] += std::log(exps[j]);
    expect_lse(high, column_lse);
    expect_close(sums, column_sum, kRounding<A>);
    EXPECT_EQ(counts, column_count);

    std::mt19937 random(7);
    const auto weight = normal_values<A>(kRows, random), target = normal_values<A>(kRows, random);
    const auto of_columns = normal_values<A>(kColumns, random), goal = of_columns;
    for (const bool both : {false, true}) {
      std::vector<A> expected(kRows * kColumns);
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t j = 0; j < kColumns; ++j) {
          const PairKind pair = made.pairs.kind(i, j);
          if (pair == kLeftOut) continue;
          const double z = given.logit(i, j);
          double value = weight[i] * std::exp(z - lse[i]);
          if (both) value += of_columns[j] * std::exp(z - column_lse[j]);
          if (pair == kPositive) value -= target[i] + (both ? goal[j] : A(0));
          expected[i * kColumns + j] = A(value);
        }
      }
      auto gradient = unwritten<A>(kRows * kColumns);
      auto narrow = unwritten<BFloat16>(kRows * kColumns);
      const PairWeights<A> rows = {lse.data(), weight.data(), target.data()};
      const PairWeights<A> columns = {both ? column_lse.data() : nullptr, of_columns.data(),
                                      goal.data()};
      given.each_strip(made.pairs, [&](const PairStrip<A>& strip) {
        const int64_t at = strip.first * kColumns;
        launch_info_nce_gradient(strip, rows, columns, gradient.data() + at, nullptr);
        if constexpr (std::is_same_v<A, float>) {
          launch_info_nce_gradient(strip, rows, columns, narrow.data() + at, nullptr);
        }
      });
      expect_close(gradient, expected, 10 * kRounding<A>);  // exponentials of lse's rounding
      for (size_t i = 0; std::is_same_v<A, float> && i < narrow.size(); ++i) {
        ASSERT_EQ(narrow[i].bits, BFloat16(float(gradient[i])).bits) << i;
      }
    }
  }
}

template <class A>
void expect_sigmoid() {
  for (int kind = 0; kind < 4; ++kind) {
    const Pairs made(kind);
    const Given<A> given;
    std::vector<A> loss(kRows), grad_bias(kRows), expected(kRows * kColumns);
    std::vector<uint8_t> compared(kRows);
    for (int64_t i = 0; i < kRows; ++i) {
      double own = 0, slopes = 0;
      for (int64_t j = 0; j < kColumns; ++j) {
        const PairKind pair = made.pairs.kind(i, j);
        if (pair == kLeftOut) continue;
        const double sign = pair == kPositive ? -1 : 1, z = sign * given.logit(i, j);
        const double slope = sign / (1 + std::exp(-z));
        own += std::log1p(std::exp(z));
        slopes += slope;
        expected[i * kColumns + j] = A(slope);
        compared[i] = 1;
      }
      loss[i] = A(own);
      grad_bias[i] = A(slopes);
    }
    auto found_loss = unwritten<A>(kRows), found_bias = found_loss;
    auto gradient = unwritten<A>(kRows * kColumns);
    auto found = unwritten<uint8_t>(kRows);
    given.each_strip(made.pairs, [&](const PairStrip<A>& strip) {
      const PairRowSums<A> rows = {found_loss.data() + strip.first, found_bias.data() + strip.first,
                                   found.data() + strip.first};
      launch_pairwise_sigmoid(strip, rows, static_cast<A*>(nullptr), nullptr);
      launch_pairwise_sigmoid(strip, rows, gradient.data() + strip.first * kColumns, nullptr);
    });
    expect_close(found_loss, loss, kRounding<A>);
    expect_close(found_bias, grad_bias, kRounding<A>);
    expect_close(gradient, expected, kRounding<A>);
    EXPECT_EQ(found, compared);
  }
}

TEST(EmulatedCuda, InfoNceFloat) { expect_info_nce<float>(); }
TEST(EmulatedCuda, InfoNceDouble) { expect_info_nce<double>(); }
TEST(EmulatedCuda, PairwiseSigmoidFloat) { expect_sigmoid<float>(); }
TEST(EmulatedCuda, PairwiseSigmoidDouble) { expect_sigmoid<double>(); }

}  // namespace
}  // namespace placket
