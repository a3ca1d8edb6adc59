#include "kernels/batch_hard.h"

#include <numeric>

#include "values.h"

namespace placket {
namespace {

template <class A>
struct Mined {
  std::vector<int64_t> positive, negative;
  std::vector<A> positive_similarity, negative_similarity;

  explicit Mined(int64_t count)
      : positive(unwritten<int64_t>(count)),
        negative(positive),
        positive_similarity(unwritten<A>(count)),
        negative_similarity(positive_similarity) {}

  BatchHard<A> into(BatchHard<A> in) {
    in.positive = positive.data();
    in.negative = negative.data();
    in.positive_similarity = positive_similarity.data();
    in.negative_similarity = negative_similarity.data();
    return in;
  }
};

template <class A>
void expect_equal_to_cpu(const BatchHard<A>& in) {
  // Groups are ascending in these cases, so that the order is the rows' own.
  std::vector<int64_t> order(in.count);
  std::iota(order.begin(), order.end(), 0);
  Mined<A> expected(in.count), found(in.count);
  batch_hard_cpu(expected.into(in), order.data());
  const std::vector<uint8_t> counted(in.count, 1);
  std::vector<Hardest<A>> parts(batch_hard_splits(in.count) * in.count * 2);
  auto ceilings = unwritten<A>(in.count);
  const char* error =
      launch_batch_hard(found.into(in), reinterpret_cast<const bool*>(counted.data()), parts.data(),
                        ceilings.data(), nullptr);
  ASSERT_EQ(error, nullptr);
  EXPECT_EQ(found.positive, expected.positive);
  EXPECT_EQ(found.negative, expected.negative);
  EXPECT_EQ(found.positive_similarity, expected.positive_similarity);
  EXPECT_EQ(found.negative_similarity, expected.negative_similarity);
}

// Whole numbers: sums are exact in any order, and many similarities are equal.
template <class A>
struct Case {
  static constexpr int64_t kCount = 150, kDims = 24, kWords = 2;
  std::mt19937 random{2};
  std::vector<A> rows;
  std::vector<int64_t> labels = whole_values(kCount, 4, random);
  std::vector<int64_t> sets = whole_values(kCount * kWords, 8, random);
  std::vector<int64_t> groups = whole_values(kCount, 3, random);
  std::vector<int64_t> domains = whole_values(kCount, 2, random);
  std::vector<uint8_t> relation = std::vector<uint8_t>(kCount * kCount);

  Case() {
    for (const int64_t value : whole_values(kCount * kDims, 4, random)) {
      rows.push_back(A(value - 1));
    }
    std::sort(groups.begin(), groups.end());
    for (int64_t i = 0; i < kCount; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        relation[i * kCount + j] = relation[j * kCount + i] = uint8_t(random() % 3 == 0);
      }
    }
  }

  BatchHard<A> labelled(int64_t count) const {
    BatchHard<A> in = {};
    in.rows = rows.data();
    in.labels = labels.data();
    in.count = count;
    in.dims = kDims;
    return in;
  }
};

TEST(EmulatedCuda, BatchHardFloat) {
  const Case<float> given;
  expect_equal_to_cpu(given.labelled(5));
  BatchHard<float> in = given.labelled(given.kCount);
  in.groups = given.groups.data();
  in.domains = given.domains.data();
  expect_equal_to_cpu(in);
  in.domains = nullptr;
  in.semi_hard = true;
  expect_equal_to_cpu(in);
  in.labels = given.sets.data();
  in.words = given.kWords;
  in.semi_hard = false;
  expect_equal_to_cpu(in);
  in.labels = nullptr;
  in.words = 0;
  in.relation = given.relation.data();
  expect_equal_to_cpu(in);
}

TEST(EmulatedCuda, BatchHardDouble) {
  const Case<double> given;
  BatchHard<double> in = given.labelled(given.kCount);
  in.semi_hard = true;
  expect_equal_to_cpu(in);
}

TEST(EmulatedCuda, BatchHardPassesNanOn) {
  constexpr int64_t kCount = 4, kDims = 8;
  std::vector<float> rows(kCount * kDims, 1);
  rows[kDims] = NAN;
  const std::vector<int64_t> labels = {0, 0, 1, 1};
  BatchHard<float> in = {};
  in.rows = rows.data();
  in.labels = labels.data();
  in.count = kCount;
  in.dims = kDims;
  Mined<float> found(kCount);
  const std::vector<uint8_t> counted(kCount, 1);
  std::vector<Hardest<float>> parts(batch_hard_splits(kCount) * kCount * 2);
  std::vector<float> ceilings(kCount);
  launch_batch_hard(found.into(in), reinterpret_cast<const bool*>(counted.data()), parts.data(),
                    ceilings.data(), nullptr);
  EXPECT_TRUE(std::isnan(found.positive_similarity[0]));
  EXPECT_EQ(found.positive[0], 1);
  EXPECT_EQ(found.negative[2], 1);
  EXPECT_TRUE(std::isnan(found.negative_similarity[2]));
}

}  // namespace
}  // namespace placket
