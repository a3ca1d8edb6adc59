#include "kernels/panel_scores.h"

#include <gtest/gtest.h>

#include "panel_scores_cases.h"

namespace placket {
namespace {

constexpr int64_t kQueryCounts[] = {1, 2, 3, 4, 11, 12, 13, 15, 16, 17, 31, 32, 33, 70};
constexpr int64_t kItemCounts[] = {1, 8, 31, 32};
constexpr int64_t kDims[] = {1, 3, 16, 31, 32, 33, 64, 100, 129};

// By whatever instructions this processor has.
template <class Case, class Scores>
void expect_all(const Scores& scores) {
  for (const int64_t queries : kQueryCounts) {
    for (const int64_t items : kItemCounts) {
      for (const int64_t dims : kDims) Case(queries, items, dims).expect(scores);
    }
  }
}

TEST(PanelScores, OfInt8AreExact) { expect_all<Int8Case>(int8_scores); }
TEST(PanelScores, OfBfloat16) { expect_all<BFloat16Case>(bfloat16_scores); }

TEST(PanelScores, SumsStayExactAtTheLimits) {
  constexpr int64_t kDim = 1000;
  Int8Case limits(17, kPanelItems, kDim);
  std::fill(limits.queries.begin(), limits.queries.end(), 127);
  std::fill(limits.items.begin(), limits.items.end(), -128);
  std::vector<const void*> rows;
  for (int64_t i = 0; i < kPanelItems; ++i) rows.push_back(limits.items.data() + i * kDim);
  pack_panel(rows.data(), kPanelItems, kDim, limits.panel.data());
  limits.expect(int8_scores);
}

}  // namespace
}  // namespace placket
