#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/decode.h"
#include "requirement.h"

// Of sanitizer/allocator_interface.h, which GCC does not install.
// NOLINTBEGIN(bugprone-reserved-identifier)
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*after_malloc)(const volatile void*,
                                                                              size_t),
                                                         void (*before_free)(const volatile void*));
extern "C" size_t __sanitizer_get_allocated_size(const volatile void*);
// NOLINTEND(bugprone-reserved-identifier)

// decode_bytes with everything checked that must hold for any input.
namespace placket::fuzz {

// What the program holds of the heap, libjpeg's included. New memory is filled with `pattern`, so
// that what is used before it is written differs between two patterns.
struct Heap {
  static inline size_t live = 0, peak = 0;
  static inline int pattern = 0;

  static void watch() {
    const int installed = __sanitizer_install_malloc_and_free_hooks(
        [](const volatile void* memory, size_t size) {
          live += size;
          peak = std::max(peak, live);
          constexpr size_t kMostFilled = 1 << 20;  // more would take most of the program's time
          std::memset(const_cast<void*>(memory), pattern, std::min(size, kMostFilled));
        },
        [](const volatile void* memory) { live -= __sanitizer_get_allocated_size(memory); });
    require(installed != 0, "hooks of malloc are installed");
  }
};

struct Segment {
  size_t at;  // of the 0xff before the marker
  uint8_t marker;
  size_t length;  // of what follows the marker, in bytes, its two bytes of length included

  bool is_frame() const {
    return marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
  }
};

// The segments of a JPEG file up to where its structure ends or the file does. Coded data after a
// start of scan belong to no segment.
inline std::vector<Segment> segments_of(const uint8_t* bytes, size_t size) {
  std::vector<Segment> found;
  size_t at = 2;
  while (at + 4 <= size) {
    if (bytes[at] != 0xff) return found;
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xff) {  // a fill byte
      ++at;
      continue;
    }
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd7)) {  // stand alone
      at += 2;
      continue;
    }
    if (marker == 0x00 || marker == 0xd8 || marker == 0xd9) return found;
    const size_t length = size_t(bytes[at + 2]) << 8 | bytes[at + 3];
    if (length < 2 || at + 2 + length > size) return found;
    found.push_back({at, marker, length});
    at += 2 + length;
    if (marker == 0xda) {
      const auto ends = [&] {
        return bytes[at] == 0xff && bytes[at + 1] != 0 &&
               (bytes[at + 1] < 0xd0 || bytes[at + 1] > 0xd7);
      };
      while (at + 2 <= size && !ends()) ++at;
    }
  }
  return found;
}

struct Size {
  int64_t height, width;
  int64_t pixels() const { return height * width; }
};

// What the first frame header claims; none where no decoder could get at one.
inline std::optional<Size> claimed_size(const uint8_t* bytes, size_t size) {
  for (const Segment& segment : segments_of(bytes, size)) {
    if (segment.marker == 0xda) return std::nullopt;
    if (!segment.is_frame()) continue;
    if (segment.length < 8) return std::nullopt;
    const uint8_t* frame = bytes + segment.at + 4;  // precision, height, width
    return Size{frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]};
  }
  return std::nullopt;
}

struct Outcome {
  Image image;        // without pixels where the bytes were refused
  std::string cause;  // why
  size_t heap = 0;    // what decoding added to the heap at its peak, in bytes

  bool decoded() const { return cause.empty(); }
  bool too_large() const { return cause.starts_with("image must have at most"); }
};

// The most that decoding may add to the heap. The decoder itself and its tables take some 100 KB
// and the EXIF blocks no more than the file. An image takes 3 bytes a pixel, twice while it is
// turned; the coefficients of a progressive file 2 for each of up to 4 components, in whole units
// of up to 32 pixels a side; the rows in progress up to 1 KB a column.
inline size_t heap_bound(size_t size, const std::optional<Size>& claimed) {
  const size_t without_image = 256 * 1024 + 2 * size;
  if (!claimed || claimed->pixels() > kMaxPixels) return without_image;
  const auto height = size_t(claimed->height + 31), width = size_t(claimed->width + 31);
  return without_image + height * width * (3 + 3 + 4 * 2) + width * 1024;
}

// A part of the image, another for other images, is decoded as in the whole.
template <class Decode>
void require_part(const Image& whole, const Decode& decode) {
  const auto between = [&](int64_t low, int64_t high, int64_t salt) {
    const int64_t seed = int64_t(whole.pixels[size_t(salt) % whole.pixels.size()]) * salt;
    return low + seed % (high - low);
  };
  const int64_t x0 = between(0, whole.width, 7919), y0 = between(0, whole.height, 104729);
  const int64_t x1 = between(x0 + 1, whole.width + 1, 1299709);
  const int64_t y1 = between(y0 + 1, whole.height + 1, 15485863);
  const Image part = decode([&](int64_t, int64_t) { return Box{x0, y0, x1, y1}; });
  require(part.height == whole.height && part.width == whole.width, "a part has the whole's size");
  for (int64_t y = y0; y < y1; ++y) {
    const auto row = [&](const Image& image) {
      return image.pixels.data() + (y * image.width + x0) * 3;
    };
    require(std::equal(row(part), row(part) + (x1 - x0) * 3, row(whole)), "a part's pixels");
  }
}

// Decodes, and requires an image of the claimed size or an error with a name and a cause, the heap
// within its bound, and no use of memory that nothing was written to.
inline Outcome checked_decode(const uint8_t* bytes, size_t size, Orientation orientation) {
  static const std::string name = "mutant.jpg";
  const std::optional<Size> claimed = claimed_size(bytes, size);
  Outcome outcome;
  const size_t before = Heap::live;
  Heap::peak = before;
  Heap::pattern = 0xad;
  try {
    outcome.image = decode_bytes(bytes, size, name, orientation);
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    require(text.starts_with(name + ": "), "error begins with the name: " + text);
    outcome.cause = text.substr(name.size() + 2);
    require(!outcome.cause.empty(), "error has a cause");
  }
  outcome.heap = Heap::peak - before;
  require(outcome.heap <= heap_bound(size, claimed),
          "heap within its bound: " + std::to_string(outcome.heap) + " bytes, bound " +
              std::to_string(heap_bound(size, claimed)));
  if (!outcome.decoded()) return outcome;

  const Image& image = outcome.image;
  require(claimed.has_value(), "a decoded file has a frame header");
  const Size frame = claimed.value_or(Size{0, 0});
  const bool as_claimed = image.height == frame.height && image.width == frame.width;
  const bool turned = image.height == frame.width && image.width == frame.height;
  require(as_claimed || (turned && orientation == Orientation::kApply),
          "image of the claimed size");
  require(image.height > 0 && image.width > 0, "image has pixels");
  require(image.height * image.width <= kMaxPixels, "image within kMaxPixels");
  require(image.pixels.size() == size_t(image.height * image.width * 3), "pixels for every place");
  Heap::pattern = 0x5b;
  const Image again = decode_bytes(bytes, size, name, orientation);
  require(again.pixels == image.pixels, "the same bytes give the same pixels");
  require_part(image, [&](const PartOf& part) {
    return decode_bytes(bytes, size, name, orientation, part);
  });
  return outcome;
}

}  // namespace placket::fuzz
