#include "kernels/attention_pool.h"

#include <limits>

#include "values.h"

namespace placket {
namespace {

template <class T>
struct Given {
  using A = accumulate_t<T>;
  int64_t images, attributes, channels, positions;
  std::vector<A> weights;
  std::vector<T> values;

  Given(int64_t images, int64_t attributes, int64_t channels, int64_t positions,
        std::mt19937& random)
      : images(images),
        attributes(attributes),
        channels(channels),
        positions(positions),
        weights(normal_values<A>(images * attributes * positions, random)),
        values(normal_values<T>(images * channels * positions, random)) {}

  void expect_equal_to_cpu(bool channels_last) const {
    for (const bool with_sums : {false, true}) {
      auto pooled = unwritten<T>(images * attributes * channels), expected_pooled = pooled;
      auto sums = unwritten<A>(images * channels), expected_sums = sums;
      const auto pass = [&](std::vector<T>& to, std::vector<A>& to_sums) {
        return AttentionPool<T>{
            weights.data(), values.data(), images,
            attributes,     channels,      positions,
            channels_last,  to.data(),     with_sums ? to_sums.data() : nullptr};
      };
      ASSERT_EQ(launch_attention_pool(pass(pooled, sums), nullptr), nullptr);
      attention_pool_cpu(pass(expected_pooled, expected_sums));
      expect_close(pooled, expected_pooled, kRounding<T>);
      expect_close(sums, expected_sums, kRounding<A>);
    }
  }
};

template <class T>
void expect_equal_to_cpu() {
  std::mt19937 random(1);
  for (const bool channels_last : {false, true}) {
    Given<T>(1, 1, 1, 1, random).expect_equal_to_cpu(channels_last);
    Given<T>(3, 9, 5, 40, random).expect_equal_to_cpu(channels_last);
    Given<T>(2, 16, 3, 7, random).expect_equal_to_cpu(channels_last);
    Given<T>(1, 0, 9, 33, random).expect_equal_to_cpu(channels_last);
    Given<T>(2, 2, 9, 0, random).expect_equal_to_cpu(channels_last);
    Given<T>(0, 2, 9, 3, random).expect_equal_to_cpu(channels_last);
    Given<T>(2, 3, 130, 6, random).expect_equal_to_cpu(channels_last);
  }
}

TEST(EmulatedCuda, AttentionPoolFloat) { expect_equal_to_cpu<float>(); }
TEST(EmulatedCuda, AttentionPoolDouble) { expect_equal_to_cpu<double>(); }
TEST(EmulatedCuda, AttentionPoolBFloat16) { expect_equal_to_cpu<BFloat16>(); }

TEST(EmulatedCuda, AttentionPoolPassesNan) {
  std::mt19937 random(2);
  Given<float> given(2, 3, 4, 35, random);
  given.weights[given.positions + 1] = given.values[given.positions * 6 + 2] =
      std::numeric_limits<float>::quiet_NaN();
  given.expect_equal_to_cpu(/*channels_last=*/false);
  given.expect_equal_to_cpu(/*channels_last=*/true);
}

}  // namespace
}  // namespace placket
