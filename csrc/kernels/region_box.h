#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace placket {

// See ops/region_box.h. All arrays are contiguous and on the device of the kernel.
struct RegionBox {
  const float* attention;  // [maps, height, width]
  const int64_t* sizes;    // [maps, 2]
  int64_t maps, height, width;
  int64_t view;
  int threshold;  // an 8-bit value above it is kept; below 255
  bool squashed;
};

void region_box_cpu(const RegionBox& in, int64_t* boxes);
const char* launch_region_box(const RegionBox& in, int64_t* boxes, Stream stream);

}  // namespace placket
