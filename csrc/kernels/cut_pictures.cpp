#include "kernels/cut_pictures.h"

#include <algorithm>
#include <cstring>

namespace placket {

void cut_picture_cpu(const uint8_t* image, int64_t height, int64_t width, const int64_t* box,
                     bool flip, uint8_t* out) {
  const int64_t x0 = box[0], y0 = box[1], x1 = box[2], y1 = box[3];
  const int64_t row_bytes = (x1 - x0) * 3;
  if (x0 < 0 || y0 < 0 || x1 > width || y1 > height) std::fill_n(out, (y1 - y0) * row_bytes, 0);
  const int64_t first = std::max<int64_t>(x0, 0);
  const int64_t last = std::max(first, std::min(x1, width));  // none may overlap
  for (int64_t y = std::max<int64_t>(y0, 0); y < std::min(y1, height); ++y) {
    const uint8_t* from = image + (y * width + first) * 3;
    uint8_t* row = out + (y - y0) * row_bytes;
    if (!flip) {
      std::memcpy(row + (first - x0) * 3, from, size_t((last - first) * 3));
      continue;
    }
    for (int64_t x = first; x < last; ++x, from += 3) std::memcpy(row + (x1 - 1 - x) * 3, from, 3);
  }
}

}  // namespace placket
