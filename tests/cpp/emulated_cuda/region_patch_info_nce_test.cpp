#include "kernels/region_patch_info_nce.h"

#include <numeric>

#include "values.h"

namespace placket {
namespace {

template <class T>
void expect_unit_rows() {
  using A = accumulate_t<T>;
  std::mt19937 random(8);
  for (const int64_t dims : {31, 300}) {  // of one dimension the gradient is rounding alone
    constexpr int64_t kRows = 11;
    auto input = normal_values<T>(kRows * dims, random);
    std::fill_n(input.begin() + 2 * dims, dims, T(0));  // has no direction
    std::vector<int64_t> order(kRows);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    auto unit = unwritten<A>(kRows * dims), inverse = unwritten<A>(kRows);
    auto expected_unit = unit, expected_inverse = inverse;
    const auto pass = [&](std::vector<A>& rows, std::vector<A>& scales) {
      return UnitRows<T>{input.data(), order.data(), kRows, dims, rows.data(), scales.data()};
    };
    ASSERT_EQ(launch_unit_rows(pass(unit, inverse), nullptr), nullptr);
    unit_rows_cpu(pass(expected_unit, expected_inverse));
    expect_close(unit, expected_unit, kRounding<A>);
    for (int64_t i = 0; i < kRows; ++i) {
      EXPECT_NEAR(inverse[i] / expected_inverse[i], 1, kRounding<A>) << i;
    }

    const auto grad = normal_values<A>(kRows * dims, random);
    // The row without direction magnifies its gradient a million million times.
    expected_inverse[std::find(order.begin(), order.end(), 2) - order.begin()] = 1;
    auto grad_input = unwritten<T>(kRows * dims), expected = grad_input;
    const auto backward = [&](std::vector<T>& out) {
      return UnitRowsBackward<T>{
          grad.data(), expected_unit.data(), expected_inverse.data(), order.data(), kRows, dims,
          out.data()};
    };
    ASSERT_EQ(launch_unit_rows_backward(backward(grad_input), nullptr), nullptr);
    unit_rows_backward_cpu(backward(expected));
    expect_close(grad_input, expected, kRounding<T>);
  }
}

template <class A>
void expect_contrast() {
  std::mt19937 random(9);
  // Attributes of 1, 40 and 300 rows, the second one asked for by a block from its middle on.
  const std::vector<int64_t> starts = {0, 1, 41, 341};
  const int64_t rows = starts.back();
  std::vector<int64_t> begin, end;
  for (size_t a = 0; a + 1 < starts.size(); ++a) {
    begin.resize(starts[a + 1], starts[a]);
    end.resize(starts[a + 1], starts[a + 1]);
  }
  auto labels = whole_values(rows, 4, random);
  labels[60] = 99;  // the only row of its label
  for (const auto& [first, anchors] : {std::pair<int64_t, int64_t>(0, 30), {30, 50}}) {
    for (const bool outside : {false, true}) {
      const int64_t from = begin[first];
      const int64_t backgrounds = outside ? end[first + anchors - 1] - from : 0;
      const auto cosines = [&](int64_t width) {
        std::vector<A> values(anchors * width);
        for (A& value : values) value = A(std::uniform_real_distribution<>(-1, 1)(random));
        return values;
      };
      const auto patch = cosines(rows), background = cosines(backgrounds);
      for (const bool gradients : {false, true}) {
        const auto block = [&](std::vector<A>& patches, std::vector<A>& others) {
          return ContrastBlock<A>{labels.data(), begin.data(), end.data(),     first,
                                  anchors,       rows,         from,           backgrounds,
                                  0.1,           1.5,          patches.data(), others.data()};
        };
        auto patches = patch, others = background, expected_patches = patch;
        auto expected_others = background;
        auto loss = unwritten<A>(anchors), expected_loss = loss;
        const ContrastBlock<A> found = block(patches, others);
        const ContrastBlock<A> expected = block(expected_patches, expected_others);
        if (gradients) {
          ASSERT_EQ(launch_contrast_gradient(found, loss.data(), nullptr), nullptr);
          contrast_gradient_cpu(expected, expected_loss.data());
          expect_close(patches, expected_patches, kRounding<A>);
          expect_close(others, expected_others, kRounding<A>);
        } else {
          ASSERT_EQ(launch_contrast(found, loss.data(), nullptr), nullptr);
          contrast_cpu(expected, expected_loss.data());
        }
        expect_close(loss, expected_loss, kRounding<A>);
      }
    }
  }
}

TEST(EmulatedCuda, UnitRowsFloat) { expect_unit_rows<float>(); }
TEST(EmulatedCuda, UnitRowsDouble) { expect_unit_rows<double>(); }
TEST(EmulatedCuda, UnitRowsBFloat16) { expect_unit_rows<BFloat16>(); }
TEST(EmulatedCuda, ContrastFloat) { expect_contrast<float>(); }
TEST(EmulatedCuda, ContrastDouble) { expect_contrast<double>(); }

}  // namespace
}  // namespace placket
