#include "data/mask.h"

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>
#include <stdexcept>

namespace placket {

void check_masks(const char* user, const MaskColumn& masks) {
  const int64_t files = masks.filenames == nullptr ? 0 : masks.filenames->size();
  TORCH_CHECK_VALUE(files == masks.size(), user, ": masks must have as many files as numbers, got ",
                    files, " and ", masks.size());
  for (const uint8_t number : masks.numbers) {
    TORCH_CHECK_VALUE(!masks.bits || number < 8, user,
                      ": masks of bits must have numbers in [0, 8), got ", int(number));
  }
}

MaskPicture decode_mask(const std::string& path, Orientation orientation) {
  const Bytes bytes = read_file(path);
  // Bit depth and colour type stand at the end of the first block of a PNG. Other pictures would
  // come out as colours, in which the numbers are no longer to be seen.
  static constexpr uint8_t kSignature[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  constexpr size_t kDepth = 24, kColourType = 25;
  if (bytes.size() <= kColourType ||
      std::memcmp(bytes.data(), kSignature, sizeof kSignature) != 0) {
    throw std::runtime_error(path + ": mask must be a PNG file, got another");
  }
  if (bytes[kDepth] != 8 || bytes[kColourType] != 0) {
    throw std::runtime_error(path + ": mask must be a PNG of one grey channel of 8 bits, got " +
                             std::to_string(int(bytes[kDepth])) + " bits of colour type " +
                             std::to_string(int(bytes[kColourType])));
  }
  const Image image = decode_bytes(bytes.data(), bytes.size(), path, orientation);
  MaskPicture picture{image.height, image.width, Bytes(size_t(image.height * image.width))};
  for (size_t i = 0; i < picture.pixels.size(); ++i) picture.pixels[i] = image.pixels[3 * i];
  return picture;
}

std::shared_ptr<const MaskPicture> MaskFiles::get(const std::string& path,
                                                  Orientation orientation) {
  const auto decode = [&] {
    return std::make_shared<const MaskPicture>(decode_mask(path, orientation));
  };
  std::promise<Picture> promise;
  std::shared_future<Picture> picture;
  bool is_first = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = files_.find(path);
    if (found != files_.end()) {
      File& file = found->second;
      is_first = !file.picture.valid();
      if (is_first) file.picture = promise.get_future().share();
      picture = file.picture;
      if (--file.rows == 0) files_.erase(found);
    }
  }
  if (!picture.valid()) return decode();
  if (is_first) {
    try {
      promise.set_value(decode());
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }
  return picture.get();
}

}  // namespace placket
