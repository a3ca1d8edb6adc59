#include "kernels/region_box.h"

#include <limits>

#include "values.h"

namespace placket {
namespace {

void expect_equal_to_cpu(const std::vector<float>& attention, const std::vector<int64_t>& sizes,
                         int64_t height, int64_t width, int64_t view, int threshold) {
  const auto maps = int64_t(sizes.size()) / 2;
  for (const bool squashed : {false, true}) {
    const RegionBox in = {attention.data(), sizes.data(), maps, height, width, view,
                          threshold,        squashed};
    auto found = unwritten<int64_t>(4 * maps), expected = found;
    ASSERT_EQ(launch_region_box(in, found.data(), nullptr), nullptr);
    region_box_cpu(in, expected.data());
    EXPECT_EQ(found, expected) << height << " x " << width << " in " << view << ", " << squashed;
  }
}

TEST(EmulatedCuda, RegionBox) {
  struct Case {
    int64_t height, width, view;
    int threshold;
  };
  std::mt19937 random(1);
  for (const auto& [height, width, view, threshold] :
       {Case{14, 14, 224, 25}, Case{5, 9, 100, 0}, Case{1, 30, 31, 254}, Case{40, 33, 40, 51},
        Case{2, 3, 32, 25}, Case{1, 1, 8, 25}}) {
    std::vector<float> maps;
    for (const float sharpness : {0.01f, 2.0f, 12.0f}) {
      for (const float value : normal_values<float>(height * width, random, sharpness)) {
        maps.push_back(std::exp(value));
      }
    }
    expect_equal_to_cpu(maps, whole_values(6, 900, random), height, width, view, threshold);
  }
  expect_equal_to_cpu({}, {}, 2, 3, 32, 25);
}

TEST(EmulatedCuda, RegionBoxOfOnePosition) {
  constexpr int64_t kHeight = 3, kWidth = 4, kArea = kHeight * kWidth;
  std::mt19937 random(2);
  std::vector<float> maps(kArea * kArea, 0.0f);
  for (int64_t i = 0; i < kArea; ++i) maps[i * kArea + i] = 1.0f;
  expect_equal_to_cpu(maps, whole_values(2 * kArea, 900, random), kHeight, kWidth, 37, 25);
}

TEST(EmulatedCuda, RegionBoxOfMapsWithoutRange) {
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // Flat, beyond float32, and not finite; sides below 1 count as 1.
  expect_equal_to_cpu({-3, -3, kMost, -kMost, 0, -kInfinity}, {0, -5, 1, 77, 31, 900}, 1, 2, 2, 25);
  expect_equal_to_cpu({7}, {2, 3}, 1, 1, 1, 25);
  // More values than a block has threads.
  std::vector<float> map(33 * 40, 0.0f);
  map[5] = 1;
  map.back() = std::numeric_limits<float>::quiet_NaN();
  expect_equal_to_cpu(map, {448, 672}, 33, 40, 40, 25);
}

}  // namespace
}  // namespace placket
