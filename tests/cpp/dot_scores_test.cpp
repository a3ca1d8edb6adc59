#include "kernels/dot_scores.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace placket {
namespace {

// The contract of the header, word for word.
float chained(const float* query, const float* item, int64_t dims) {
  float score = 0;
  for (int64_t begin = 0; begin < dims; begin += kDotBlock) {
    float sum = 0;
    for (int64_t d = begin; d < std::min(begin + kDotBlock, dims); ++d) {
      sum = std::fma(query[d], item[d], sum);
    }
    score = begin > 0 ? score + sum : sum;
  }
  return score;
}

bool fuses() {
#ifdef __x86_64__
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

TEST(DotScores, AreTheChainsOfTheContract) {
  if (!fuses()) GTEST_SKIP() << "no AVX2 and FMA here: each product is rounded";
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const int64_t dims : {8, 248, 256, 264, 1000}) {
    // Fewer and more queries than a tile and a chunk have, items that fill no panel.
    for (const int64_t query_count : {1, 2, 3, 4, 5, 7, 13, 64, 255, 259, 500}) {
      for (const int64_t item_count : {1, 7, 8, 16, 33, 75}) {
        std::vector<float> queries(query_count * dims), items(item_count * dims);
        for (float& value : queries) value = normal(random);
        for (float& value : items) value = normal(random);
        const int64_t stride = item_count + 3;
        constexpr float kUntouched = 12345;
        std::vector<float> scores(query_count * stride, kUntouched);
        dot_scores_cpu({queries.data(), items.data(), query_count, item_count, dims}, scores.data(),
                       stride);
        for (int64_t q = 0; q < query_count; ++q) {
          for (int64_t i = 0; i < stride; ++i) {
            const float expected =
                i < item_count ? chained(queries.data() + q * dims, items.data() + i * dims, dims)
                               : kUntouched;
            ASSERT_EQ(scores[q * stride + i], expected)
                << query_count << " x " << item_count << " x " << dims << " at " << q << ", " << i;
          }
        }
      }
    }
  }
}

TEST(DotScores, OfListedItemsAreTheSame) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (const int64_t dims : {8, 256, 264, 1000}) {
    for (const int64_t count : {1, 7, 8, 19}) {
      std::vector<float> query(dims), items(count * dims), expected(count), scores(count + 1, 5);
      for (float& value : query) value = normal(random);
      for (float& value : items) value = normal(random);
      dot_scores_cpu({query.data(), items.data(), 1, count, dims}, expected.data(), count);
      std::vector<const float*> listed;
      for (int64_t i = count - 1; i >= 0; --i) listed.push_back(items.data() + i * dims);
      std::reverse(expected.begin(), expected.end());
      expected.push_back(5);
      listed_scores_cpu(query.data(), listed.data(), count, dims, scores.data());
      EXPECT_EQ(scores, expected) << count << " x " << dims;
    }
  }
}

TEST(DotScores, OfNoDimensionsAreZero) {
  const float value = 1;
  std::vector<float> scores(6, value);
  dot_scores_cpu({&value, &value, 2, 2, 0}, scores.data(), 3);
  EXPECT_EQ(scores, (std::vector<float>{0, 0, 1, 0, 0, 1}));
}

}  // namespace
}  // namespace placket
