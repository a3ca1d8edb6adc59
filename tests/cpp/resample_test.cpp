#include "kernels/resample.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/random.h"
#include "kernels/fit_window.h"

namespace placket {
namespace {

void expect_window(const FitWindow& window, int64_t resized_height, int64_t resized_width,
                   int64_t top, int64_t left) {
  EXPECT_EQ(window.resized_height, resized_height);
  EXPECT_EQ(window.resized_width, resized_width);
  EXPECT_EQ(window.top, top);
  EXPECT_EQ(window.left, left);
}

TEST(FitWindow, LongSideIsRoundedDown) {
  expect_window(fit_window(300, 225, 224), 298, 224, 37, 0);
  expect_window(fit_window(225, 300, 224), 224, 298, 0, 37);
  expect_window(fit_window(512, 512, 224), 224, 224, 0, 0);
}

// torchvision's int(round(excess / 2.0)).
TEST(FitWindow, HalvesGoToTheEvenInteger) {
  expect_window(fit_window(225, 224, 224), 225, 224, 0, 0);
  expect_window(fit_window(227, 224, 224), 227, 224, 2, 0);
  expect_window(fit_window(224, 229, 224), 224, 229, 0, 2);
}

std::vector<uint8_t> random_image(int64_t height, int64_t width) {
  RandomStream stream(1, kRandomAugment, 0);
  std::vector<uint8_t> image(height * width * 3);
  for (uint8_t& value : image) value = uint8_t(stream.next());
  return image;
}

// Against Pillow the whole picture is compared in tests/ops/test_crop_resize.py; a window is a part
// of it. The second shape takes the vertical pass first.
TEST(Resample, WindowIsAPartOfTheWhole) {
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{61, 83}, {190, 40}}) {
    const std::vector<uint8_t> image = random_image(height, width);
    ResampleJob job{image.data(), height, width, -5, 3, width, height, 50, 37, 0, 0, false};
    std::vector<uint8_t> whole(50 * 37 * 3), window(20 * 11 * 3);
    resample_uint8_cpu(job, 50, 37, whole.data());
    for (const bool flip : {false, true}) {
      job.top = 30;
      job.left = 9;
      job.flip = flip;
      resample_uint8_cpu(job, 20, 11, window.data());
      for (int64_t y = 0; y < 20; ++y) {
        for (int64_t x = 0; x < 11; ++x) {
          const int64_t column = job.left + (flip ? 10 - x : x);
          for (int64_t c = 0; c < 3; ++c) {
            ASSERT_EQ(window[(y * 11 + x) * 3 + c], whole[((job.top + y) * 37 + column) * 3 + c]);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace placket
