#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/resample.h"
#include "kernels/resample_axis.h"
#include "kernels/resample_float_plain.h"
#include "kernels/resample_passes_plain.h"
#include "kernels/resample_rows.h"

namespace placket {

inline std::vector<uint8_t> random_image(int64_t height, int64_t width) {
  RandomStream stream(1, kRandomAugment, 0);
  std::vector<uint8_t> image(height * width * 3);
  for (uint8_t& value : image) value = uint8_t(stream.next());
  return image;
}

// Calls f(job, height, width) with windows of pictures that are shrunk, enlarged or both, from one
// pixel up, within the image, across its edges and beside it, by every filter, mirrored and not.
template <class F>
void for_each_window(const F& f) {
  constexpr std::array<std::array<int64_t, 2>, 9> kImages = {
      {{1, 1}, {3, 5}, {37, 29}, {61, 83}, {190, 40}, {40, 190}, {64, 64}, {1, 150}, {150, 1}}};
  constexpr std::array<std::array<int64_t, 2>, 6> kSizes = {
      {{1, 1}, {7, 9}, {24, 24}, {33, 50}, {50, 33}, {70, 70}}};
  for (const auto& [height, width] : kImages) {
    const std::vector<uint8_t> image = random_image(height, width);
    const std::array<std::array<int64_t, 4>, 4> boxes = {
        {{0, 0, width, height},
         {-5, 3 - height, width / 2 + 1, height + 7},
         {width / 3, height / 4, 2 * width, 2 * height},
         {width + 1, 0, width + 9, height}}};
    for (const auto& [x0, y0, x1, y1] : boxes) {
      for (const auto& [resized_height, resized_width] : kSizes) {
        for (const Filter filter :
             {Filter::kBox, Filter::kBilinear, Filter::kBicubic, Filter::kLanczos}) {
          for (const bool flip : {false, true}) {
            // A part of the whole where there is room.
            const int64_t top = resized_height / 8, left = resized_width / 9;
            const ResampleJob job = {image.data(),   height,        width, x0,   y0,   x1,    y1,
                                     resized_height, resized_width, top,   left, flip, filter};
            f(job, resized_height - 2 * top, resized_width - 2 * left);
          }
        }
      }
    }
  }
}

inline std::string describe(const ResampleJob& job) {
  return "image " + std::to_string(job.image_height) + " x " + std::to_string(job.image_width) +
         ", box " + std::to_string(job.x0) + " " + std::to_string(job.y0) + " " +
         std::to_string(job.x1) + " " + std::to_string(job.y1) + ", resized " +
         std::to_string(job.resized_height) + " x " + std::to_string(job.resized_width) +
         ", filter " + std::to_string(int(job.filter)) + (job.flip ? ", flipped" : "");
}

template <class Passes>
std::vector<uint8_t> resampled(const ResampleJob& job, int64_t height, int64_t width) {
  const auto [columns, rows] = resample_axes(job, height, width);
  std::vector<uint8_t> out;
  resample_rows<Passes>(job, columns, rows, [&](int64_t, const uint8_t* row) {
    out.insert(out.end(), row, row + width * kChannels);
  });
  return out;
}

template <class Passes>
void expect_same_bytes_as_plain() {
  for_each_window([](const ResampleJob& job, int64_t height, int64_t width) {
    ASSERT_EQ(resampled<Passes>(job, height, width), resampled<plain::Passes>(job, height, width))
        << describe(job);
  });
}

}  // namespace placket
