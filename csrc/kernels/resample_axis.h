#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/resample.h"

namespace placket {

constexpr int64_t kChannels = 3;

// One axis of a job's window: for each output coordinate the first source coordinate (in the image)
// and `most` weights, of which those past `count` are zero.
struct ResampleAxis {
  int64_t size, most;
  int64_t source_begin = 0, source_end = 0;  // all that the window reads
  std::vector<int64_t> begin, count;         // [size]
  std::vector<int32_t> weights;              // [size, most]
};

// The part of the image, x0 y0 x1 y1, that a window of height x width (not empty) reads, or
// more where it leaves the image.
std::array<int64_t, 4> resample_sources(const ResampleJob& job, int64_t height, int64_t width);

// Columns and rows of a window of height x width.
std::pair<ResampleAxis, ResampleAxis> resample_axes(const ResampleJob& job, int64_t height,
                                                    int64_t width);

}  // namespace placket
