#include "kernels/class_centres.h"

#include "values.h"

namespace placket {
namespace {

template <class T>
void expect_equal_to_cpu() {
  using A = accumulate_t<T>;
  std::mt19937 random(3);
  for (const int64_t count : {1, 300}) {
    for (const int64_t dims : {1, 33, 300}) {
      constexpr int64_t kClasses = 7;
      const auto embeddings = normal_values<T>(count * dims, random);
      // Classes without rows, and rows without a class.
      auto classes = whole_values(count, kClasses + 2, random);
      for (int64_t& value : classes) value -= 1;
      const auto centres = normal_values<A>(kClasses * dims, random);
      const ClassRows<T> rows = {embeddings.data(), classes.data(), count, dims, kClasses};
      const Centres<A> to_move = {centres.data(), kClasses, dims, 0.7};

      auto inverse = unwritten<A>(count), sums = unwritten<A>(kClasses * dims);
      auto counts = unwritten<A>(kClasses), moved = sums, moved_at_once = sums;
      auto expected_sums = sums, expected_counts = counts, expected_moved = sums;
      class_sums_cpu(rows, expected_sums.data(), expected_counts.data());
      class_centres_cpu(rows, to_move, expected_moved.data());
      ASSERT_EQ(launch_class_sums(rows, inverse.data(), sums.data(), counts.data(), nullptr),
                nullptr);
      expect_close(sums, expected_sums, kRounding<A>);
      EXPECT_EQ(counts, expected_counts);
      const char* error =
          launch_class_centres_of_sums(to_move, sums.data(), counts.data(), moved.data(), nullptr);
      ASSERT_EQ(error, nullptr);
      expect_close(moved, expected_moved, kRounding<A>);
      error = launch_class_centres(rows, to_move, inverse.data(), moved_at_once.data(), nullptr);
      ASSERT_EQ(error, nullptr);
      EXPECT_EQ(moved_at_once, moved);
    }
  }
}

TEST(EmulatedCuda, ClassCentresFloat) { expect_equal_to_cpu<float>(); }
TEST(EmulatedCuda, ClassCentresDouble) { expect_equal_to_cpu<double>(); }
TEST(EmulatedCuda, ClassCentresBFloat16) { expect_equal_to_cpu<BFloat16>(); }

}  // namespace
}  // namespace placket
