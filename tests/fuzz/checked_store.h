#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/store.h"
#include "requirement.h"

// The readers of a store with everything checked that must hold for any bytes.
namespace placket::fuzz {

constexpr size_t kStoreEnd = 64;  // of header and footer

// Bit by bit, apart from the store's own.
inline uint32_t crc32_of(const uint8_t* bytes, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
  }
  return ~crc;
}

// Puts the checksums right where their bytes lie in the file, so that what they guard is reached.
inline void repair_checksums(uint8_t* bytes, size_t size) {
  if (size < 2 * kStoreEnd) return;
  uint8_t* footer = bytes + size - kStoreEnd;
  const auto number = [&](size_t at) {
    uint64_t value;
    std::memcpy(&value, footer + at, sizeof value);
    return value;
  };
  const auto put = [&](size_t at, uint64_t begin, uint64_t length) {
    if (begin > size || length > size - begin) return;
    const uint32_t crc = crc32_of(bytes + begin, length);
    std::memcpy(footer + at, &crc, sizeof crc);
  };
  put(32, 0, kStoreEnd);
  if (number(8) <= size) put(36, number(0), number(8) * sizeof(StoreRecord));
  put(40, number(16), number(24));
  put(52, size - kStoreEnd, 52);
}

// Requires contents that lie in the file, or an error with a name and a cause; whether it is the
// former.
inline bool checked_parse(const uint8_t* bytes, size_t size) {
  static const std::string name = "mutant.store";
  const std::vector<uint8_t> block(bytes, bytes + size);  // aligned, and watched to its last byte
  StoreContents contents;
  try {
    contents = parse_store(block.data(), size, name);
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    require(text.starts_with(name + ": ") && text.size() > name.size() + 2, "a cause: " + text);
    return false;
  }
  require(contents.kind <= StoreKind::kStoredPixels, "a kind that is known");
  uint32_t read = crc32_of(reinterpret_cast<const uint8_t*>(contents.metadata.data()),
                           contents.metadata.size());
  for (const StoreRecord& record : contents.records) {
    require(record.offset >= kStoreEnd && record.length <= size - 2 * kStoreEnd &&
                record.offset <= size - kStoreEnd - record.length,
            "a record within the file");
    if (contents.kind != StoreKind::kFiles) {
      const auto pixels = uint64_t(record.height) * record.width;
      require(pixels > 0 && pixels <= size && record.length == pixels * 3, "pixels of a picture");
    }
    read ^= crc32_of(block.data() + record.offset, record.length);
  }
  [[maybe_unused]] static volatile uint32_t sink;  // so that the bytes are read indeed
  sink = read;
  return true;
}

// Goes on with a pack whose partial file holds these bytes, and requires a whole store with one
// record more than were kept, or an error with a name and a cause; returns how many were kept, -1
// for an error. The file is `path`.
inline int64_t checked_resume(const uint8_t* bytes, size_t size, const std::string& path) {
  const std::string partial = path + ".partial";
  std::ofstream(partial, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes), ssize_t(size));
  auto kind = StoreKind::kFiles;
  StoreWriter::Fingerprint fingerprint{};
  if (size >= kStoreEnd) {
    kind = StoreKind(bytes[12] % 3);
    std::copy(bytes + 16, bytes + 32, fingerprint.begin());
  }
  int64_t kept = -1;
  try {
    StoreWriter writer(path, kind, fingerprint);
    kept = writer.size();
    StoreRecord about;
    about.height = about.width = about.source_height = about.source_width = 1;
    const uint8_t pixel[3] = {1, 2, 3};
    writer.append(pixel, sizeof pixel, about);
    writer.finish("what is packed");
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    require(kept < 0, "what was gone on with is finished: " + text);
    require(text.starts_with(partial + ": ") && text.size() > partial.size() + 2,
            "a cause: " + text);
    std::filesystem::remove(partial);
    return -1;
  }
  {
    const Store store(path);
    require(store.kind() == kind && store.size() == kept + 1, "a record more than were kept");
    require(store.metadata() == "what is packed", "the metadata");
    for (int64_t i = 0; i <= kept; ++i) require(store.is_intact(i), "records are intact");
  }
  require(!std::filesystem::exists(partial), "the partial file was renamed");
  std::filesystem::remove(path);
  return kept;
}

// A folder that is gone when the program ends; in memory where there is such a place.
class ScratchFolder {
 public:
  ScratchFolder() {
    const bool memory = std::filesystem::is_directory("/dev/shm");
    std::string pattern = memory ? "/dev/shm/placket-XXXXXX" : "/tmp/placket-XXXXXX";
    require(::mkdtemp(pattern.data()) != nullptr, "a scratch folder");
    path_ = pattern;
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace placket::fuzz
