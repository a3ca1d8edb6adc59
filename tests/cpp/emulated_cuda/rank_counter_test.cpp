#include "kernels/rank_counter.h"

#include <set>

#include "values.h"

namespace placket {
namespace {

// What the operator keeps for a block of queries.
struct Ranked {
  std::vector<uint64_t> keys;
  std::vector<uint32_t> counters;
  std::vector<double> average, expected_average, precision_sum;
  std::vector<int64_t> hits, first;

  Ranked(int64_t queries, int64_t most, int64_t cutoffs)
      : keys(unwritten<uint64_t>(queries * most)),
        counters(queries * rank_counters(most)),
        average(unwritten<double>(queries)),
        expected_average(average),
        precision_sum(unwritten<double>(queries * cutoffs)),
        hits(unwritten<int64_t>(queries * cutoffs)),
        first(unwritten<int64_t>(queries)) {}

  RankBlock into(RankBlock in) {
    in.keys = keys.data();
    in.counters = counters.data();
    in.metrics = {average.data(), expected_average.data(), hits.data(), precision_sum.data(),
                  first.data()};
    return in;
  }
  void sort(int64_t most) {
    for (auto begin = keys.begin(); begin != keys.end(); begin += most) {
      std::sort(begin, begin + most);
    }
  }
};

// Of few different scores, so that many are equal. Where counters fit into shared memory and where
// they do not.
TEST(EmulatedCuda, RankCounterHasTheBitsOfTheCpu) {
  std::mt19937 random(4);
  for (const int64_t most : {3, 5000}) {
    constexpr int64_t kQueries = 5, kGroups = 3, kCandidates = 9000;
    std::vector<float> scores;
    for (const int64_t value : whole_values(kQueries * kCandidates, 50, random)) {
      scores.push_back(float(value) / 49 - 0.5f);
    }
    scores[3 * kCandidates + 17] = NAN;
    const auto groups = whole_values(kQueries, kGroups, random);
    std::vector<int64_t> offsets = {0}, rows;
    for (int64_t g = 0; g < kGroups; ++g) {
      std::set<int64_t> chosen;
      while (int64_t(chosen.size()) < (g == 0 ? most : most / 2)) {
        chosen.insert(int64_t(random() % kCandidates));
      }
      rows.insert(rows.end(), chosen.begin(), chosen.end());
      offsets.push_back(int64_t(rows.size()));
    }
    const std::vector<int64_t> excluded = {-1, 7, rows[0], 3, 8999}, cutoffs = {1, 10, 100};
    RankBlock in = {};
    in.scores = scores.data();
    in.queries = kQueries;
    in.candidates = kCandidates;
    in.groups = groups.data();
    in.offsets = offsets.data();
    in.rows = rows.data();
    in.excluded = excluded.data();
    in.most = most;
    in.cutoffs = cutoffs.data();
    in.cutoff_count = int64_t(cutoffs.size());
    Ranked found(kQueries, most, in.cutoff_count), expected = found;
    ASSERT_EQ(launch_write_rank_keys(found.into(in), nullptr), nullptr);
    write_rank_keys_cpu(expected.into(in));
    EXPECT_EQ(found.keys, expected.keys);
    found.sort(most);
    expected.sort(most);
    ASSERT_EQ(launch_measure_rank_block(found.into(in), nullptr), nullptr);
    measure_rank_block_cpu(expected.into(in));
    EXPECT_EQ(found.counters, expected.counters);
    EXPECT_EQ(found.hits, expected.hits);
    EXPECT_EQ(found.first, expected.first);
    expect_close(found.average, expected.average, 0);
    expect_close(found.expected_average, expected.expected_average, 0);
    expect_close(found.precision_sum, expected.precision_sum, 0);
    EXPECT_TRUE(std::isnan(found.average[3]));
  }
}

}  // namespace
}  // namespace placket
