#include "kernels/batch_norm_act.h"

#include <limits>

#include "values.h"

namespace placket {
namespace {

// The CPU adds the rows of a chunk one by one.
template <class A>
constexpr double kSumRounding = 5 * kRounding<A>;

template <class T>
struct Forward {
  using A = accumulate_t<T>;
  std::vector<A> workspace, mean, variance;
  std::vector<T> output;

  explicit Forward(const BatchNormShape& shape)
      : workspace(unwritten<A>(shape.workspace())),
        mean(unwritten<A>(shape.groups * shape.channels)),
        variance(mean),
        output(unwritten<T>(shape.groups * shape.rows * shape.channels)) {}
};

template <class T>
struct Backward {
  using A = accumulate_t<T>;
  std::vector<A> workspace, sums;
  std::vector<T> input, residual;

  explicit Backward(const BatchNormShape& shape)
      : workspace(unwritten<A>(shape.workspace())),
        sums(unwritten<A>(2 * shape.groups * shape.channels)),
        input(unwritten<T>(shape.groups * shape.rows * shape.channels)),
        residual(input) {}
};

template <class T>
struct Given {
  using A = accumulate_t<T>;
  BatchNormShape shape;
  std::vector<T> input, residual, grad;
  std::vector<A> weight, bias;
  double eps = 1e-5;

  Given(const BatchNormShape& shape, std::mt19937& random)
      : shape(shape),
        input(normal_values<T>(shape.groups * shape.rows * shape.channels, random, 2)),
        residual(normal_values<T>(int64_t(input.size()), random)),
        grad(normal_values<T>(int64_t(input.size()), random)),
        weight(normal_values<A>(shape.channels, random)),
        bias(normal_values<A>(shape.channels, random)) {
    // A mean of about 0 would be nothing but the rounding of its sum.
    for (T& value : input) value = T(A(value) + 3);
  }

  BatchNormForward<T> pass(Forward<T>& to, bool with_residual, bool relu) const {
    return {shape,          input.data(),        with_residual ? residual.data() : nullptr,
            weight.data(),  bias.data(),         eps,
            relu,           to.workspace.data(), to.output.data(),
            to.mean.data(), to.variance.data()};
  }

  BatchNormBackward<T> pass(Backward<T>& to, const Forward<T>& of, bool with_residual,
                            bool relu) const {
    return {shape,
            grad.data(),
            input.data(),
            relu ? of.output.data() : nullptr,
            weight.data(),
            of.mean.data(),
            of.variance.data(),
            eps,
            to.workspace.data(),
            to.sums.data(),
            to.input.data(),
            with_residual ? to.residual.data() : nullptr};
  }

  void expect_equal_to_cpu(bool with_residual, bool relu) const {
    Forward<T> forward(shape), expected_forward = forward;
    ASSERT_EQ(launch_batch_norm_act(pass(forward, with_residual, relu), nullptr), nullptr);
    batch_norm_act_cpu(pass(expected_forward, with_residual, relu));
    expect_close(forward.output, expected_forward.output, kRounding<T>);
    expect_close(forward.mean, expected_forward.mean, kSumRounding<A>);
    expect_close(forward.variance, expected_forward.variance, kSumRounding<A>);

    Backward<T> backward(shape), expected = backward;
    const char* error = launch_batch_norm_act_backward(
        pass(backward, expected_forward, with_residual, relu), nullptr);
    ASSERT_EQ(error, nullptr);
    batch_norm_act_backward_cpu(pass(expected, expected_forward, with_residual, relu));
    expect_close(backward.input, expected.input, kRounding<T>);
    expect_close(backward.residual, expected.residual, 0);
    expect_close(backward.sums, expected.sums, kSumRounding<A>);
  }
};

template <class T>
void expect_equal_to_cpu() {
  std::mt19937 random(1);
  // Also of more rows than a chunk and of more channels than a warp has lanes.
  for (const BatchNormShape& shape : {BatchNormShape{1, 4, 1}, BatchNormShape{3, 35, 7},
                                      BatchNormShape{2, 1030, 2}, BatchNormShape{1, 9, 70}}) {
    const Given<T> given(shape, random);
    for (const bool with_residual : {false, true}) {
      for (const bool relu : {false, true}) given.expect_equal_to_cpu(with_residual, relu);
    }
  }
}

TEST(EmulatedCuda, BatchNormActFloat) { expect_equal_to_cpu<float>(); }
TEST(EmulatedCuda, BatchNormActDouble) { expect_equal_to_cpu<double>(); }
TEST(EmulatedCuda, BatchNormActBFloat16) { expect_equal_to_cpu<BFloat16>(); }

TEST(EmulatedCuda, BatchNormActOfNanAndOfConstantChannels) {
  std::mt19937 random(2);
  Given<float> given({2, 40, 5}, random);
  given.eps = 0.1;  // a smaller one would make the constant channel's gradients the largest by far
  given.input[17 * 5 + 3] = std::numeric_limits<float>::quiet_NaN();
  for (size_t i = 1; i < given.input.size(); i += 5) given.input[i] = 0.7f;
  given.expect_equal_to_cpu(/*with_residual=*/true, /*relu=*/true);
}

TEST(EmulatedCuda, BatchNormActOfALargeMean) {
  std::mt19937 random(3);
  Given<float> given({2, 600, 3}, random);
  for (float& value : given.input) value = 1000 + value / 200;
  Forward<float> found(given.shape), expected = found;
  ASSERT_EQ(launch_batch_norm_act(given.pass(found, false, false), nullptr), nullptr);
  batch_norm_act_cpu(given.pass(expected, false, false));
  expect_close(found.mean, expected.mean, kSumRounding<float>);
  expect_close(found.variance, expected.variance, kSumRounding<float>);
}

TEST(EmulatedCuda, BatchNormActOfOneRowIsTheBias) {
  std::mt19937 random(4);
  const Given<float> given({3, 1, 2}, random);
  Forward<float> forward(given.shape);
  Backward<float> backward(given.shape);
  ASSERT_EQ(launch_batch_norm_act(given.pass(forward, false, false), nullptr), nullptr);
  const auto pass = given.pass(backward, forward, false, false);
  ASSERT_EQ(launch_batch_norm_act_backward(pass, nullptr), nullptr);
  for (int i = 0; i < 6; ++i) EXPECT_FLOAT_EQ(forward.output[i], given.bias[i % 2]);
  EXPECT_EQ(forward.mean, given.input);
  EXPECT_EQ(forward.variance, std::vector<float>(6, 0.0f));
  EXPECT_EQ(backward.input, std::vector<float>(6, 0.0f));
}

TEST(EmulatedCuda, BatchNormActOfNoRows) {
  std::mt19937 random(5);
  const Given<float> given({3, 0, 2}, random);
  Forward<float> forward(given.shape);
  Backward<float> backward(given.shape);
  EXPECT_EQ(launch_batch_norm_act(given.pass(forward, true, true), nullptr), nullptr);
  const auto pass = given.pass(backward, forward, true, true);
  EXPECT_EQ(launch_batch_norm_act_backward(pass, nullptr), nullptr);
}

}  // namespace
}  // namespace placket
