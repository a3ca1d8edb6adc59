#include "kernels/crop_resize.h"

#include <array>
#include <memory>

#include "base/bfloat16.h"
#include "kernels/resample_taps.h"
#include "values.h"

namespace placket {
namespace {

constexpr float kMean[] = {0.485f, 0.456f, 0.406f}, kStd[] = {0.229f, 0.224f, 0.225f};

// Of every third image the values are 0 and 255 alone, which reach the ends of the sums.
struct Given {
  std::vector<uint8_t> pixels;
  std::vector<int64_t> offsets, sizes, image_index, boxes, windows;
  std::unique_ptr<bool[]> flip;

  explicit Given(const std::vector<std::array<int64_t, 2>>& images) {
    std::mt19937 random(1);
    for (const auto& [height, width] : images) {
      const bool extreme = offsets.size() % 3 == 1;
      offsets.push_back(int64_t(pixels.size()));
      sizes.insert(sizes.end(), {height, width});
      for (const int64_t value : whole_values(height * width * 3, extreme ? 2 : 256, random)) {
        pixels.push_back(uint8_t(extreme ? 255 * value : value));
      }
    }
  }

  void add(int64_t image, const std::array<int64_t, 4>& box) {
    image_index.push_back(image);
    boxes.insert(boxes.end(), box.begin(), box.end());
  }

  // Of every box in turn: as it is, at the corners, and inside a far larger picture.
  void add_windows_and_flips(int64_t height, int64_t width) {
    windows.clear();
    flip = std::make_unique<bool[]>(image_index.size());
    for (size_t i = 0; i < image_index.size(); ++i) {
      const std::array<int64_t, 4> kinds[] = {{height, width, 0, 0},
                                              {height + 5, width, 5, 0},
                                              {height + 1, width + 90, 0, 90},
                                              {3 * height + 1, 2 * width + 7, height, width}};
      windows.insert(windows.end(), kinds[i % 4].begin(), kinds[i % 4].end());
      flip[i] = i % 3 == 0;
    }
  }

  CropResize in(int64_t height, int64_t width, bool channels_last) const {
    return {pixels.data(),
            int64_t(pixels.size()),
            offsets.data(),
            sizes.data(),
            int64_t(offsets.size()),
            boxes.data(),
            image_index.data(),
            flip.get(),
            windows.empty() ? nullptr : windows.data(),
            int64_t(image_index.size()),
            height,
            width,
            {kMean[0], kMean[1], kMean[2]},
            {kStd[0], kStd[1], kStd[2]},
            channels_last};
  }

  template <class T = float>
  void expect_equal_to_cpu(int64_t height, int64_t width, bool channels_last) const {
    const CropResize in = this->in(height, width, channels_last);
    auto found = unwritten<T>(in.crops * 3 * height * width), expected = found;
    ASSERT_EQ(launch_crop_resize(in, found.data(), nullptr), nullptr);
    crop_resize_cpu(in, expected.data());
    EXPECT_TRUE(found == expected) << height << " x " << width;
  }

  void expect_black(int64_t height, int64_t width) const {
    const CropResize in = this->in(height, width, /*channels_last=*/true);
    auto found = unwritten<float>(in.crops * height * width * 3);
    ASSERT_EQ(launch_crop_resize(in, found.data(), nullptr), nullptr);
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], normalize_uint8(0, kMean[i % 3], kStd[i % 3])) << "at " << i;
    }
  }
};

// One pixel, odd, tall and wide; of the second boxes inside, over each border, beside the image,
// of one pixel, and far larger.
Given varied() {
  Given given({{1, 1}, {37, 53}, {200, 11}, {9, 140}});
  given.add(0, {0, 0, 1, 1});
  given.add(1, {0, 0, 53, 37});
  given.add(2, {0, 0, 11, 200});
  given.add(3, {0, 0, 140, 9});
  given.add(1, {5, 7, 30, 31});
  given.add(1, {-10, 3, 20, 30});
  given.add(1, {40, -9, 80, 20});
  given.add(1, {30, 30, 60, 45});
  given.add(1, {60, 0, 90, 20});
  given.add(1, {-30, -30, -1, -1});
  given.add(1, {52, 36, 53, 37});
  given.add(1, {-200, -300, 300, 250});
  return given;
}

TEST(EmulatedCuda, CropResize) {
  for (const auto& [height, width] : {std::pair{1, 1}, {7, 5}, {32, 33}, {70, 12}}) {
    Given given = varied();
    given.expect_equal_to_cpu(height, width, /*channels_last=*/false);
    given.add_windows_and_flips(height, width);
    given.expect_equal_to_cpu(height, width, /*channels_last=*/true);
  }
  varied().expect_equal_to_cpu<BFloat16>(5, 34, /*channels_last=*/true);
  varied().expect_equal_to_cpu(0, 5, /*channels_last=*/false);
}

// More taps than the kernel keeps weights of, and more lines than one of its chunks.
TEST(EmulatedCuda, CropResizeLongFilters) {
  Given given({{150, 300}, {300, 150}});
  given.add(0, {0, 0, 300, 150});
  given.add(1, {0, 0, 150, 300});
  given.expect_equal_to_cpu(2, 3, /*channels_last=*/false);
  given.windows = {4, 9, 1, 5, 3, 8, 0, 4};
  given.expect_equal_to_cpu(2, 3, /*channels_last=*/false);
}

TEST(EmulatedCuda, CropResizeMakesInvalidCropsBlack) {
  Given boxes({{5, 6}, {1, 1}, {0, 4}, {3, 3}, {3, 3}});
  boxes.sizes[2 * 1] = int64_t{1} << 62;
  boxes.offsets[3] = -1;
  boxes.offsets[4] = int64_t(boxes.pixels.size()) - 26;
  for (const int64_t image : {-1, 5, 1, 2, 3, 4}) boxes.add(image, {0, 0, 1, 1});
  boxes.add(0, {4, 4, 4, 9});
  boxes.add(0, {0, 3, 5, 2});
  boxes.add(0, {0, 0, kCropLimit + 1, 2});
  boxes.add(0, {0, -kCropLimit - 1, 2, 2});
  boxes.expect_black(16, 24);

  Given windows({{5, 6}});
  for (int i = 0; i < 4; ++i) windows.add(0, {0, 0, 6, 5});
  windows.windows = {20, 24, 5, 0, 16, 24, 0, -1, 15, 24, 0, 0, kResizedLimit + 1, 24, 0, 0};
  windows.expect_black(16, 24);
}

}  // namespace
}  // namespace placket
