#include "data/orientation.h"

#include <cstring>
#include <utility>

namespace placket {
namespace {

constexpr int kUpright = 1;
constexpr uint32_t kOrientationTag = 0x0112;
constexpr uint32_t kByteType = 1, kShortType = 3, kLongType = 4;
constexpr size_t kEntrySize = 12;

// A TIFF block, whose first bytes say in which order its numbers are. Reads outside it give 0,
// which is no valid count, tag or type.
class Tiff {
 public:
  Tiff(const uint8_t* bytes, size_t size) : bytes_(bytes), size_(size) {
    valid_ = size >= 8 && (memcmp(bytes, "II*\0", 4) == 0 || memcmp(bytes, "MM\0*", 4) == 0);
    little_ = valid_ && bytes[0] == 'I';
  }

  bool valid() const { return valid_; }

  uint32_t number(size_t at, size_t width) const {
    if (at > size_ || width > size_ - at) return 0;
    uint32_t value = 0;
    for (size_t i = 0; i < width; ++i) {
      value = value << 8 | bytes_[at + (little_ ? width - 1 - i : i)];
    }
    return value;
  }

 private:
  const uint8_t* bytes_;
  size_t size_;
  bool valid_, little_;
};

}  // namespace

int exif_orientation(const uint8_t* segment, size_t size) {
  constexpr size_t kHeader = 6;
  if (size < kHeader || memcmp(segment, "Exif\0\0", kHeader) != 0) return kUpright;
  const Tiff tiff(segment + kHeader, size - kHeader);
  if (!tiff.valid()) return kUpright;
  const size_t directory = tiff.number(4, 4);
  const uint32_t entries = tiff.number(directory, 2);
  for (uint32_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + i * kEntrySize;
    if (tiff.number(entry, 2) != kOrientationTag) continue;
    const uint32_t type = tiff.number(entry + 2, 2);
    const size_t width = type == kByteType ? 1 : type == kShortType ? 2 : type == kLongType ? 4 : 0;
    const uint32_t value = tiff.number(entry + 8, width);
    return value >= 1 && value <= 8 ? int(value) : kUpright;
  }
  return kUpright;
}

Image upright(Image image, int orientation) {
  if (orientation <= kUpright || orientation > 8) return image;
  constexpr int64_t kChannels = 3;
  const int64_t height = image.height, width = image.width;
  const bool swapped = orientation >= 5;
  Image out;
  out.height = swapped ? width : height;
  out.width = swapped ? height : width;
  out.pixels.resize(image.pixels.size());
  // Where pixel (0, 0) of the result lies in the file, and the steps to its neighbours there.
  const int64_t row = width * kChannels;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const int64_t down = from_bottom ? -row : row;
  const int64_t right = from_right ? -kChannels : kChannels;
  const uint8_t* corner = image.pixels.data() + (from_bottom ? (height - 1) * row : 0) +
                          (from_right ? (width - 1) * kChannels : 0);
  const int64_t along = swapped ? down : right, across = swapped ? right : down;
  uint8_t* to = out.pixels.data();
  for (int64_t y = 0; y < out.height; ++y) {
    const uint8_t* from = corner + y * across;
    for (int64_t x = 0; x < out.width; ++x, from += along, to += kChannels) {
      memcpy(to, from, kChannels);
    }
  }
  return out;
}

}  // namespace placket
