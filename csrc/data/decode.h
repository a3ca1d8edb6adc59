#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/block_pool.h"

namespace placket {

struct Image {
  int64_t height = 0, width = 0;
  Bytes pixels;  // [height, width, 3] RGB
};

// The pixels of an image that lives elsewhere.
struct ImageView {
  int64_t height = 0, width = 0;
  const uint8_t* pixels = nullptr;  // [height, width, 3] RGB

  ImageView() = default;
  ImageView(int64_t height, int64_t width, const uint8_t* pixels)
      : height(height), width(width), pixels(pixels) {}
  ImageView(const Image& image)  // NOLINT: an image serves wherever a view does
      : height(image.height), width(image.width), pixels(image.pixels.data()) {}
};

using Box = std::array<int64_t, 4>;  // x0 y0 x1 y1 in pixels; x1, y1 exclusive

// Told an image's height and width (upright), says which part of it will be read; what of the part
// lies outside the image does not count.
using PartOf = std::function<Box(int64_t height, int64_t width)>;

// What to do with the EXIF tag that says how the camera was held: turn the picture upright, as
// every viewer does, or take the pixels as they are stored, as the reference code does.
enum class Orientation { kApply, kIgnore };

// Decodes a file to RGB as Pillow's convert("RGB") does. JPEG (grey, YCbCr, RGB, CMYK, YCCK; the
// latter two in Adobe's inverted sense) by libjpeg-turbo with Pillow's settings: accurate DCT,
// smooth upsampling. Every other format, and JPEG in a build without libjpeg, by the fallback.
// Stricter than Pillow: corrupt data that libjpeg would only warn of is an error, since the pixels
// after it are not the photograph's.
// A missing, truncated or damaged file throws std::runtime_error "<path>: <cause>". An image that
// claims more than kMaxPixels is refused before memory is taken. Thread-safe.
//
// `part`, where given, is asked once. Pixels outside it may hold anything: an upright JPEG of
// one scan is decoded there only as far as finding damage needs.
Image decode_file(const std::string& path, Orientation orientation = Orientation::kApply,
                  const PartOf& part = {});
// The same of a file's bytes; `name` takes the place of the path.
Image decode_bytes(const uint8_t* bytes, size_t size, const std::string& name,
                   Orientation orientation = Orientation::kApply, const PartOf& part = {});

// The bytes of a file, of which a missing or empty one is an error as above.
Bytes read_file(const std::string& path);

// What decodes other formats; it may be called from any thread and throws std::runtime_error
// "<name>: <cause>". The bindings set Pillow, under the GIL; nullptr takes it away. Returns once no
// call of the one before is in progress: a thread that holds the GIL must give it up first.
using DecodeFallback = std::function<Image(const uint8_t* bytes, size_t size,
                                           const std::string& name, Orientation orientation)>;
void set_decode_fallback(DecodeFallback fallback);

inline constexpr int64_t kMaxPixels = 178956970;  // Pillow's limit for a decompression bomb

}  // namespace placket
