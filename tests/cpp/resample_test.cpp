#include "kernels/resample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/fit_window.h"
#include "resample_cases.h"

#if defined(__x86_64__)
#include "kernels/resample_float_avx2.h"
#include "kernels/resample_passes_avx2.h"
#include "kernels/resample_passes_avx512.h"
#endif

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

#if defined(__x86_64__)
TEST(Resample, Avx2EqualsPlain) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "the processor has no AVX2";
  expect_same_bytes_as_plain<avx2::Passes>();
}

TEST(Resample, Avx512EqualsPlain) {
  if (!avx512::supported()) GTEST_SKIP() << "the processor has no AVX-512 F and BW";
  expect_same_bytes_as_plain<avx512::Passes>();
}

TEST(Resample, FloatOfAvx2EqualsPlain) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "the processor has no AVX2";
  const ChannelLine line({0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f});
  for_each_window([&](const ResampleJob& job, int64_t height, int64_t width) {
    const auto [columns, rows] = resample_axes(job, height, width);
    std::vector<float> expected(height * width * kChannels), out(expected.size());
    plain::resample_float(job, columns, rows, line, expected.data());
    avx2::resample_float(job, columns, rows, line, out.data());
    ASSERT_EQ(out, expected) << describe(job);
  });
}
#endif

TEST(Resample, FloatIsTheFilterWithoutRounding) {
  const float mean[3] = {0.0f, 0.25f, 0.5f}, std[3] = {1.0f, 0.5f, 0.25f};
  for_each_window([&](const ResampleJob& job, int64_t height, int64_t width) {
    const auto [columns, rows] = resample_axes(job, height, width);
    std::vector<float> out(height * width * kChannels);
    resample_float_cpu(job, height, width, mean, std, out.data());
    const double one = 1 << kWeightBits;
    for (int64_t i = 0; i < height * width * kChannels; ++i) {
      const int64_t c = i % kChannels, x = i / kChannels % width, y = i / kChannels / width;
      double level = 0;
      for (int64_t v = 0; v < rows.count[y]; ++v) {
        for (int64_t u = 0; u < columns.count[x]; ++u) {
          const int64_t pixel = (rows.begin[y] + v) * job.image_width + columns.begin[x] + u;
          level += rows.weights[y * rows.most + v] / one * columns.weights[x * columns.most + u] /
                   one * job.image[pixel * kChannels + c];
        }
      }
      const double expected = (std::clamp(level, 0.0, 255.0) / 255 - mean[c]) / std[c];
      // Sums of float32 over up to 200 columns of levels up to 255, here on [0, 1].
      ASSERT_NEAR(out[i] * std[c], expected * std[c], 1e-5) << describe(job);
    }
  });
}

}  // namespace
}  // namespace placket
