#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace placket {

struct Image {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3] RGB
};

// Decodes a file to RGB. JPEG by libjpeg-turbo (accurate DCT, smooth upsampling: Pillow's
// settings); every other format, and JPEG in a build without libjpeg, by the fallback (set by the
// bindings: Pillow, under the GIL). A missing, truncated or damaged file throws std::runtime_error
// "<path>: <cause>". More than max_pixels claimed: refused before memory is taken.
Image decode_file(const std::string& path);
void set_decode_fallback(std::function<Image(const std::string& path)> fallback);

inline constexpr int64_t kMaxPixels = 178956970;  // Pillow's limit for a decompression bomb

}  // namespace placket
