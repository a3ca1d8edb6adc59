#include "kernels/cosine_triplet.h"

#include <limits>

#include "values.h"

namespace placket {
namespace {

template <class T>
struct Given {
  int64_t rows, dims;
  std::vector<T> anchor, positive, negative, grad;

  Given(int64_t rows, int64_t dims, std::mt19937& random)
      : rows(rows),
        dims(dims),
        anchor(normal_values<T>(rows * dims, random)),
        positive(normal_values<T>(rows * dims, random)),
        negative(normal_values<T>(rows * dims, random)),
        grad(normal_values<T>(rows, random)) {}

  CosineTriplet<T> in() const {
    return {anchor.data(), positive.data(), negative.data(), rows, dims, 0.2};
  }

  void expect_equal_hinges() const {
    auto hinge = unwritten<T>(rows), expected = hinge;
    ASSERT_EQ(launch_cosine_triplet(in(), hinge.data(), nullptr), nullptr);
    cosine_triplet_cpu(in(), expected.data());
    expect_close(hinge, expected, kRounding<T>);
  }

  void expect_equal_gradients() const {
    auto a = unwritten<T>(rows * dims), p = a, n = a, expected_a = a, expected_p = a,
         expected_n = a;
    const char* error =
        launch_cosine_triplet_backward(in(), grad.data(), a.data(), p.data(), n.data(), nullptr);
    ASSERT_EQ(error, nullptr);
    cosine_triplet_backward_cpu(in(), grad.data(), expected_a.data(), expected_p.data(),
                                expected_n.data());
    expect_close(a, expected_a, kRounding<T>);
    expect_close(p, expected_p, kRounding<T>);
    expect_close(n, expected_n, kRounding<T>);
  }
};

template <class T>
void expect_equal_to_cpu() {
  std::mt19937 random(1);
  for (const int64_t rows : {0, 1, 4, 9}) {
    for (const int64_t dims : {1, 2, 31, 32, 33, 100}) {
      const Given<T> given(rows, dims, random);
      given.expect_equal_hinges();
      // In one dimension a cosine is constant: its gradient is nothing but rounding.
      if (dims > 1) given.expect_equal_gradients();
    }
  }
}

TEST(EmulatedCuda, CosineTripletFloat) { expect_equal_to_cpu<float>(); }
TEST(EmulatedCuda, CosineTripletDouble) { expect_equal_to_cpu<double>(); }
TEST(EmulatedCuda, CosineTripletBFloat16) { expect_equal_to_cpu<BFloat16>(); }

TEST(EmulatedCuda, CosineTripletRowsWithoutDirectionOrHinge) {
  std::mt19937 random(2);
  using Row = std::vector<float> Given<float>::*;
  for (const Row row : {&Given<float>::anchor, &Given<float>::positive, &Given<float>::negative}) {
    // One row a launch: what a zero row does to the others' gradients is 1e12 times larger.
    Given<float> zero(1, 40, random), not_a_number = zero;
    std::fill((zero.*row).begin(), (zero.*row).end(), 0.0f);
    (not_a_number.*row)[35] = std::numeric_limits<float>::quiet_NaN();
    for (const Given<float>& given : {zero, not_a_number}) {
      given.expect_equal_hinges();
      given.expect_equal_gradients();
    }
  }
  Given<float> satisfied(1, 40, random);
  satisfied.positive = satisfied.anchor;
  satisfied.expect_equal_hinges();
  satisfied.expect_equal_gradients();
}

}  // namespace
}  // namespace placket
