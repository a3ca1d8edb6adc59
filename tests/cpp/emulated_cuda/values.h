#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "base/bfloat16.h"

namespace placket {

// Vectors stand for memory of the device here, so that a sanitizer finds what a kernel reads or
// writes outside.
template <class T>
std::vector<T> normal_values(int64_t count, std::mt19937& random, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<T> values(count);
  for (T& value : values) value = T(normal(random));
  return values;
}

inline std::vector<int64_t> whole_values(int64_t count, int64_t below, std::mt19937& random) {
  std::vector<int64_t> values(count);
  for (int64_t& value : values)
    value = std::uniform_int_distribution<int64_t>(0, below - 1)(random);
  return values;
}

// What is there before a kernel writes; whatever is left of it shows.
template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(count, T(12345));
}

// Kernels of the two devices add in another order: `tolerance` is of the largest value.
template <class T>
void expect_close(const std::vector<T>& found, const std::vector<T>& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  double most = 0;
  for (const T& value : expected) most = std::max(most, std::abs(double(value)));
  for (size_t i = 0; i < found.size(); ++i) {
    const double a = double(found[i]), b = double(expected[i]);
    ASSERT_TRUE(std::isnan(a) ? std::isnan(b) : std::abs(a - b) <= tolerance * most)
        << "at " << i << ": " << a << ", expected " << b;
  }
}

// Of a type's sums and exponentials.
template <class T>
constexpr double kRounding = 1e-5;
template <>
inline constexpr double kRounding<double> = 1e-12;
template <>
inline constexpr double kRounding<BFloat16> = 0x1p-7;

}  // namespace placket
