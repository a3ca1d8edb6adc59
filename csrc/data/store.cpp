#include "data/store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <system_error>

#include "base/crc32.h"

namespace placket {
namespace {

static_assert(std::endian::native == std::endian::little, "stores are mapped as they are");

constexpr char kMagic[8] = {'p', 'l', 'a', 'c', 'k', 'e', 't', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kRecordMark = 0x64726f63;
constexpr uint64_t kAlignment = 8;
constexpr uint64_t kSyncBytes = uint64_t(256) << 20;

struct Header {
  char magic[8];
  uint32_t version, kind;
  uint8_t fingerprint[16];
  uint8_t zeros[32];
};
static_assert(sizeof(Header) == 64);

struct Footer {
  uint64_t index, records, metadata, metadata_length;
  uint32_t header_checksum, index_checksum, metadata_checksum;
  uint8_t zeros[8];
  uint32_t checksum;  // of all before it
  char magic[8];
};
static_assert(sizeof(Footer) == 64);

uint64_t aligned(uint64_t place) { return (place + kAlignment - 1) / kAlignment * kAlignment; }

// Whether [place, place + length) lies in [begin, end).
bool lies_in(uint64_t place, uint64_t length, uint64_t begin, uint64_t end) {
  return place >= begin && place <= end && length <= end - place;
}

std::string system_cause() { return std::generic_category().message(errno); }

// Where a record is that lies at `place`, or why it cannot be one.
const char* fault_of(const StoreRecord& record, StoreKind kind, uint64_t begin, uint64_t end) {
  if (record.mark != kRecordMark) return "has no mark";
  if (record.offset % kAlignment != 0) return "is not aligned";
  if (!lies_in(record.offset, record.length, begin, end)) return "leaves the file";
  if (kind == StoreKind::kFiles) return nullptr;
  // Sides of 32 bits: their product fits in 64, three times it may not.
  const uint64_t pixels = uint64_t(record.height) * record.width;
  if (pixels == 0 || record.length % 3 != 0 || record.length / 3 != pixels) {
    return "has another size than its picture";
  }
  return nullptr;
}

}  // namespace

StoreContents parse_store(const uint8_t* bytes, size_t size, const std::string& name) {
  const auto fail = [&](const std::string& cause) {
    throw std::runtime_error(name + ": " + cause);
  };
  if (size < sizeof kMagic || std::memcmp(bytes, kMagic, sizeof kMagic) != 0) {
    fail("file must be a store, got another kind");
  }
  if (size < sizeof(Header) + sizeof(Footer) ||
      std::memcmp(bytes + size - sizeof kMagic, kMagic, sizeof kMagic) != 0) {
    fail("store must have its footer, got a file that was cut off; pack it again");
  }
  Header header;
  std::memcpy(&header, bytes, sizeof header);
  Footer footer;
  std::memcpy(&footer, bytes + size - sizeof footer, sizeof footer);
  if (header.version != kVersion) {
    fail("store must be of version " + std::to_string(kVersion) + ", got " +
         std::to_string(header.version));
  }
  const uint64_t begin = sizeof header;
  const uint64_t end = size - sizeof footer;
  const uint64_t most = (end - begin) / sizeof(StoreRecord);
  if (header.kind > uint32_t(StoreKind::kStoredPixels) ||
      crc32(&footer, offsetof(Footer, checksum)) != footer.checksum ||
      crc32(&header, sizeof header) != footer.header_checksum || footer.records > most ||
      footer.index % alignof(StoreRecord) != 0 ||
      !lies_in(footer.index, footer.records * sizeof(StoreRecord), begin, end) ||
      !lies_in(footer.metadata, footer.metadata_length, begin, end)) {
    fail("header and footer of the store must agree, got a damaged file; pack it again");
  }
  StoreContents contents;
  contents.kind = StoreKind(header.kind);
  contents.records = {reinterpret_cast<const StoreRecord*>(bytes + footer.index),
                      size_t(footer.records)};
  contents.metadata = {reinterpret_cast<const char*>(bytes + footer.metadata),
                       size_t(footer.metadata_length)};
  if (crc32(contents.records.data(), contents.records.size_bytes()) != footer.index_checksum ||
      crc32(contents.metadata.data(), contents.metadata.size()) != footer.metadata_checksum) {
    fail("index and metadata of the store must have their checksums, got others; pack it again");
  }
  for (size_t i = 0; i < contents.records.size(); ++i) {
    const char* fault = fault_of(contents.records[i], contents.kind, begin, end);
    if (fault != nullptr) fail("record " + std::to_string(i) + " of the store " + fault);
  }
  return contents;
}

Store::Store(const std::string& path) : path_(path) {
  const auto fail = [&](const std::string& cause) {
    throw std::runtime_error(path + ": " + cause);
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(system_cause());
  struct stat status;
  const bool known = ::fstat(descriptor, &status) == 0;
  void* mapped = MAP_FAILED;
  if (known && status.st_size > 0) {
    length_ = size_t(status.st_size);
    mapped = ::mmap(nullptr, length_, PROT_READ, MAP_SHARED, descriptor, 0);
  }
  const std::string cause = known && status.st_size == 0 ? "file is empty" : system_cause();
  ::close(descriptor);  // the mapping stays
  if (mapped == MAP_FAILED) fail(cause);
  mapped_ = static_cast<const uint8_t*>(mapped);
  try {
    contents_ = parse_store(mapped_, length_, path);
  } catch (...) {
    ::munmap(mapped, length_);
    throw;
  }
}

Store::~Store() { ::munmap(const_cast<uint8_t*>(mapped_), length_); }

bool Store::is_intact(int64_t i) const {
  return crc32(bytes(i), record(i).length) == record(i).checksum;
}

StoreWriter::StoreWriter(const std::string& path, StoreKind kind, const Fingerprint& fingerprint)
    : path_(path), partial_(path + ".partial"), kind_(kind) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.kind = uint32_t(kind);
  std::copy(fingerprint.begin(), fingerprint.end(), header.fingerprint);
  std::memcpy(header_.data(), &header, sizeof header);
  descriptor_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail(system_cause());
  try {
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      fail(errno == EWOULDBLOCK ? "another process is writing it" : system_cause());
    }
    resume();
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

StoreWriter::~StoreWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void StoreWriter::resume() {
  struct stat status;
  if (::fstat(descriptor_, &status) != 0) fail(system_cause());
  const auto size = uint64_t(status.st_size);
  if (size < sizeof(Header)) {
    if (::ftruncate(descriptor_, 0) != 0) fail(system_cause());
    write(header_.data(), header_.size());
    return;
  }
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (mapped == MAP_FAILED) fail(system_cause());
  const auto* bytes = static_cast<const uint8_t*>(mapped);
  const bool same = std::memcmp(bytes, header_.data(), header_.size()) == 0;
  end_ = sizeof(Header);
  while (same && size - end_ >= sizeof(StoreRecord)) {
    StoreRecord record;
    std::memcpy(&record, bytes + end_, sizeof record);
    if (record.offset != end_ + sizeof record || fault_of(record, kind_, end_, size) != nullptr ||
        crc32(bytes + record.offset, record.length) != record.checksum ||
        aligned(record.offset + record.length) > size) {
      break;
    }
    records_.push_back(record);
    end_ = aligned(record.offset + record.length);
  }
  ::munmap(mapped, size);
  if (!same) {
    fail("file must have been begun from the same images in the same way, got another; delete it");
  }
  if (::ftruncate(descriptor_, off_t(end_)) != 0 ||
      ::lseek(descriptor_, off_t(end_), SEEK_SET) < 0) {
    fail(system_cause());
  }
}

void StoreWriter::append(const uint8_t* bytes, size_t length, StoreRecord about) {
  static constexpr uint8_t zeros[kAlignment] = {};
  about.offset = end_ + sizeof about;
  about.length = length;
  about.checksum = crc32(bytes, length);
  about.mark = kRecordMark;
  write(&about, sizeof about);
  write(bytes, length);
  write(zeros, aligned(end_) - end_);
  records_.push_back(about);
  if (unsynced_ >= kSyncBytes) {
    if (::fdatasync(descriptor_) != 0) fail(system_cause());
    unsynced_ = 0;
  }
}

void StoreWriter::finish(std::string_view metadata) {
  Footer footer{};
  footer.index = end_;
  footer.records = records_.size();
  footer.header_checksum = crc32(header_.data(), header_.size());
  footer.index_checksum = crc32(records_.data(), records_.size() * sizeof(StoreRecord));
  write(records_.data(), records_.size() * sizeof(StoreRecord));
  footer.metadata = end_;
  footer.metadata_length = metadata.size();
  footer.metadata_checksum = crc32(metadata.data(), metadata.size());
  write(metadata.data(), metadata.size());
  footer.checksum = crc32(&footer, offsetof(Footer, checksum));
  std::memcpy(footer.magic, kMagic, sizeof kMagic);
  write(&footer, sizeof footer);
  if (::fsync(descriptor_) != 0) fail(system_cause());
  if (::rename(partial_.c_str(), path_.c_str()) != 0) fail(system_cause());
  ::close(descriptor_);
  descriptor_ = -1;
  // The new name lasts once its folder is on the disk.
  const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  const int directory = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (directory < 0) fail(system_cause());
  const bool synced = ::fsync(directory) == 0;
  const std::string cause = system_cause();
  ::close(directory);
  if (!synced) fail(cause);
}

void StoreWriter::write(const void* data, size_t length) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  while (length > 0) {
    const ssize_t written = ::write(descriptor_, bytes, length);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(system_cause());
    bytes += written;
    length -= size_t(written);
    end_ += uint64_t(written);
    unsynced_ += uint64_t(written);
  }
}

void StoreWriter::fail(const std::string& cause) const {
  throw std::runtime_error(partial_ + ": " + cause);
}

}  // namespace placket
