#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace placket {

// A data set in one file, which is mapped rather than read. Numbers are little-endian:
//
//   header    64 bytes  "placket\n", u32 version 1, u32 StoreKind, [16] fingerprint, zeros
//   records   each      StoreRecord, its bytes, zeros up to a multiple of 8
//   index               the records' StoreRecord again
//   metadata            bytes that only the one who packed understands
//   footer    64 bytes  u64 place of the index, u64 records, u64 place and u64 length of the
//                       metadata, u32 checksums of header, index and metadata, 8 zeros, u32
//                       checksum of all this, "placket\n"
//
// Checksums are CRC-32 (zlib's).

enum class StoreKind : uint32_t {
  kFiles = 0,          // the images' files as they are
  kUprightPixels = 1,  // decoded, [height, width, 3] RGB, the EXIF orientation applied
  kStoredPixels = 2,   // decoded, the EXIF orientation ignored
};

struct StoreRecord {
  uint64_t offset = 0;                           // of the bytes, from the start of the file
  uint64_t length = 0;                           // height * width * 3 for pixels
  uint32_t height = 0, width = 0;                // of pixels; 0 for files
  uint32_t source_height = 0, source_width = 0;  // of the picture before it was made smaller
  uint32_t checksum = 0;
  uint32_t mark = 0;  // kRecordMark
};
static_assert(sizeof(StoreRecord) == 40);

// What a file holds; pointers into it.
struct StoreContents {
  StoreKind kind = StoreKind::kFiles;
  std::span<const StoreRecord> records;
  std::string_view metadata;
};

// Checks everything but the records' own bytes: sizes, places, checksums. The block is aligned to 8
// bytes. Throws std::runtime_error "<name>: <cause>".
StoreContents parse_store(const uint8_t* bytes, size_t size, const std::string& name);

// A store mapped for reading. Thread-safe. The file must not be shortened meanwhile.
class Store {
 public:
  // Throws std::runtime_error "<path>: <cause>" as parse_store does, or where it cannot be mapped.
  explicit Store(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  const std::string& path() const { return path_; }
  StoreKind kind() const { return contents_.kind; }
  std::string_view metadata() const { return contents_.metadata; }
  int64_t size() const { return int64_t(contents_.records.size()); }
  const StoreRecord& record(int64_t i) const { return contents_.records[size_t(i)]; }
  const uint8_t* bytes(int64_t i) const { return mapped_ + record(i).offset; }
  // Whether a record's bytes are those that were packed.
  bool is_intact(int64_t i) const;

 private:
  std::string path_;
  const uint8_t* mapped_ = nullptr;
  size_t length_ = 0;
  StoreContents contents_;
};

// Writes `path`.partial, which becomes `path` when it is whole. One that is there already is gone
// on with where it has the same kind and fingerprint: its records are read once and kept up to the
// first that is not intact. Throws std::runtime_error "<path>.partial: <cause>": it was begun with
// another fingerprint, another process is at it, the disk is full.
class StoreWriter {
 public:
  using Fingerprint = std::array<uint8_t, 16>;
  StoreWriter(const std::string& path, StoreKind kind, const Fingerprint& fingerprint);
  ~StoreWriter();  // what was appended stays in the partial file
  StoreWriter(const StoreWriter&) = delete;
  StoreWriter& operator=(const StoreWriter&) = delete;

  // Of the records that are there; the next append is the record of this number.
  int64_t size() const { return int64_t(records_.size()); }
  const StoreRecord& record(int64_t i) const { return records_[size_t(i)]; }
  // `about` says the sizes where the bytes are pixels.
  void append(const uint8_t* bytes, size_t length, StoreRecord about = {});
  void finish(std::string_view metadata);

 private:
  void resume();
  void write(const void* bytes, size_t length);
  [[noreturn]] void fail(const std::string& cause) const;

  std::string path_, partial_;
  StoreKind kind_;
  std::array<uint8_t, 64> header_{};
  std::vector<StoreRecord> records_;
  int descriptor_ = -1;
  uint64_t end_ = 0;       // of what is written
  uint64_t unsynced_ = 0;  // bytes since they were last forced to the disk
};

}  // namespace placket
