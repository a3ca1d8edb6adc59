#pragma once

#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/block_pool.h"
#include "data/decode.h"
#include "data/text_column.h"

namespace placket {

// Which pixels of its image each row of an ImageList shows, where rows are regions: those of a
// picture of the image's size, a PNG of one grey channel of 8 bits, that hold the row's number.
struct MaskColumn {
  std::shared_ptr<const TextColumn> filenames;  // one for every row, relative to the list's root
  std::vector<uint8_t> numbers;                 // one for every row
  // A pixel holds a number as that bit of it, so that regions may overlap; otherwise as its value.
  bool bits = false;

  int64_t size() const { return int64_t(numbers.size()); }
};

// Throws ValueError where the columns do not fit together; `user` begins the sentence.
void check_masks(const char* user, const MaskColumn& masks);

// The pixels of a mask's file.
struct MaskPicture {
  int64_t height = 0, width = 0;
  Bytes pixels;  // [height, width]
};

// Throws std::runtime_error "<path>: <cause>" as decode_file does, or where the file is another
// picture than masks are. Thread-safe.
MaskPicture decode_mask(const std::string& path, Orientation orientation = Orientation::kApply);

// Which pixels are a region's own.
struct Region {
  std::shared_ptr<const MaskPicture> picture;
  uint8_t number = 0;
  bool bits = false;

  bool has(uint8_t pixel) const { return bits ? (pixel >> number & 1) != 0 : pixel == number; }
};

// The files of a batch's masks: one that several rows name is decoded once, and kept until the last
// of them has had it. Thread-safe but for expect().
class MaskFiles {
 public:
  // One row more will ask for this file.
  void expect(const std::string& path) { ++files_[path].rows; }
  // A row that was not expected has the file decoded for itself.
  std::shared_ptr<const MaskPicture> get(const std::string& path, Orientation orientation);

 private:
  using Picture = std::shared_ptr<const MaskPicture>;
  struct File {
    int64_t rows = 0;  // that have yet to ask
    std::shared_future<Picture> picture;
  };
  std::mutex mutex_;
  std::map<std::string, File> files_;
};

}  // namespace placket
