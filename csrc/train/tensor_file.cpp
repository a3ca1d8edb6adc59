#include "train/tensor_file.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string_view>

namespace placket {
namespace {

using at::Tensor;

constexpr uint64_t kMaxHeader = uint64_t{100} << 20;  // the format's own limit
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors is little-endian");

struct DtypeName {
  at::ScalarType dtype;
  std::string_view name;
};
constexpr std::array<DtypeName, 9> kDtypes = {{{at::kFloat, "F32"},
                                               {at::kDouble, "F64"},
                                               {at::kBFloat16, "BF16"},
                                               {at::kHalf, "F16"},
                                               {at::kLong, "I64"},
                                               {at::kInt, "I32"},
                                               {at::kShort, "I16"},
                                               {at::kByte, "U8"},
                                               {at::kBool, "BOOL"}}};

[[noreturn]] void fail(const std::string& path, const std::string& cause) {
  throw std::runtime_error(path + ": " + cause);
}

std::string quoted(const std::string& text) {
  constexpr const char* kHex = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Reads the part of JSON that a safetensors header is made of.
class HeaderParser {
 public:
  HeaderParser(const std::string& path, std::string_view text) : path_(path), text_(text) {}

  // Calls member(name) with the reader standing at the member's value.
  template <class F>
  void object(const F& member) {
    expect('{');
    if (accept('}')) return;
    do {
      const std::string name = string();
      expect(':');
      member(name);
    } while (accept(','));
    expect('}');
  }

  std::vector<int64_t> integers() {
    std::vector<int64_t> values;
    expect('[');
    if (accept(']')) return values;
    do {
      values.push_back(integer());
    } while (accept(','));
    expect(']');
    return values;
  }

  std::string string() {
    expect('"');
    std::string out;
    while (position_ < text_.size() && text_[position_] != '"') {
      const char c = text_[position_++];
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
    expect('"');
    return out;
  }

  void end() {
    skip_spaces();
    if (position_ != text_.size()) damaged();
  }

 private:
  [[noreturn]] void damaged() const {
    fail(path_,
         c10::str("is not a safetensors file: its header is damaged at byte ", 8 + position_));
  }

  void skip_spaces() {
    while (position_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[position_]) != std::string_view::npos) {
      ++position_;
    }
  }

  bool accept(char c) {
    skip_spaces();
    if (position_ >= text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) damaged();
  }

  int64_t integer() {
    skip_spaces();
    int64_t value = 0;
    const size_t first = position_;
    while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') {
      if (__builtin_mul_overflow(value, int64_t{10}, &value) ||
          __builtin_add_overflow(value, int64_t{text_[position_] - '0'}, &value)) {
        damaged();
      }
      ++position_;
    }
    if (position_ == first) damaged();
    return value;
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      if (position_ >= text_.size()) damaged();
      const char c = text_[position_];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) damaged();
      code = code * 16 + uint32_t(digit);
    }
    return code;
  }

  void escape(std::string& out) {
    constexpr std::string_view kFrom = "\"\\/bfnrt";
    constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (position_ >= text_.size()) damaged();
    const char c = text_[position_++];
    if (const size_t i = kFrom.find(c); i != std::string_view::npos) {
      out += kTo[i];
      return;
    }
    if (c != 'u') damaged();
    uint32_t code = hex4();
    if (code >= 0xd800 && code < 0xdc00) {
      if (text_.substr(position_, 2) != "\\u") damaged();
      position_ += 2;
      code = 0x10000 + ((code - 0xd800) << 10) + (hex4() - 0xdc00);
    }
    if (code < 0x80) {
      out += char(code);
    } else if (code < 0x800) {
      out += {char(0xc0 | (code >> 6)), char(0x80 | (code & 63))};
    } else if (code < 0x10000) {
      out += {char(0xe0 | (code >> 12)), char(0x80 | ((code >> 6) & 63)), char(0x80 | (code & 63))};
    } else {
      out += {char(0xf0 | (code >> 18)), char(0x80 | ((code >> 12) & 63)),
              char(0x80 | ((code >> 6) & 63)), char(0x80 | (code & 63))};
    }
  }

  const std::string& path_;
  std::string_view text_;
  size_t position_ = 0;
};

class File {
 public:
  File(const std::string& path, int flags) : path_(path), fd_(::open(path.c_str(), flags, 0666)) {
    if (fd_ < 0) fail(path_, std::string("cannot be opened: ") + std::strerror(errno));
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(const void* data, size_t bytes) const {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::write(fd_, from, std::min<size_t>(bytes, size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(path_, std::string("cannot be written: ") + std::strerror(errno));
      from += written;
      bytes -= size_t(written);
    }
  }

  void read(void* data, size_t bytes) const {
    char* to = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t got = ::read(fd_, to, std::min<size_t>(bytes, size_t{1} << 30));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(path_, std::string("cannot be read: ") + std::strerror(errno));
      if (got == 0) fail(path_, "ended while it was read");
      to += got;
      bytes -= size_t(got);
    }
  }

  void sync() const {
    if (::fsync(fd_) != 0) fail(path_, std::string("cannot be written: ") + std::strerror(errno));
  }

  uint64_t size() const {
    struct stat info;
    if (::fstat(fd_, &info) != 0) fail(path_, std::strerror(errno));
    return uint64_t(info.st_size);
  }

 private:
  std::string path_;
  int fd_;
};

template <class F>
void write_atomically(const std::string& path, const F& content) {
  const std::string beside = path + ".tmp-" + std::to_string(::getpid());
  try {
    const File file(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    content(file);
    file.sync();
    std::filesystem::rename(beside, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(beside, ignored);
    throw;
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  File(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC).sync();
}

struct Entry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> offsets;
};

Tensor empty_tensor(const std::string& path, const Entry& entry) {
  const auto* found = std::find_if(kDtypes.begin(), kDtypes.end(),
                                   [&](const DtypeName& d) { return d.name == entry.dtype; });
  if (found == kDtypes.end()) {
    fail(path, "tensor '" + entry.name + "' has dtype " + entry.dtype + ", which is not supported");
  }
  int64_t bytes = int64_t(c10::elementSize(found->dtype));
  for (const int64_t size : entry.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes))
      fail(path, "tensor '" + entry.name + "' is too large");
  }
  if (entry.offsets.size() != 2 || entry.offsets[1] - entry.offsets[0] != bytes) {
    fail(path, c10::str("tensor '", entry.name, "' must take ", bytes,
                        " bytes, which its offsets do not give"));
  }
  return at::empty(entry.shape, found->dtype);
}

}  // namespace

void write_tensor_file(const std::string& path, const TensorFile& file) {
  std::string header = "{";
  if (!file.metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : file.metadata) {
      if (header.back() != '{') header += ',';
      header += quoted(key) + ":" + quoted(value);
    }
    header += "}";
  }
  uint64_t offset = 0;
  for (const auto& [name, tensor] : file.tensors) {
    const auto* dtype = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& d) {
      return d.dtype == tensor.scalar_type();
    });
    TORCH_CHECK_TYPE(dtype != kDtypes.end(), path, ": tensor '", name, "' has dtype ",
                     tensor.scalar_type(), ", which is not supported");
    if (header.size() > 1) header += ",";
    header += quoted(name) + ":{\"dtype\":\"" + std::string(dtype->name) + "\",\"shape\":[";
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (d > 0) header += ',';
      header += std::to_string(tensor.size(d));
    }
    header += "],\"data_offsets\":[" + std::to_string(offset) + ",";
    offset += uint64_t(tensor.numel()) * tensor.element_size();
    header += std::to_string(offset) + "]}";
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data begin aligned
  write_atomically(path, [&](const File& out) {
    const uint64_t length = header.size();
    out.write(&length, sizeof length);
    out.write(header.data(), header.size());
    for (const auto& [name, tensor] : file.tensors) {
      const Tensor saved = tensor.detach().cpu().contiguous();
      out.write(saved.const_data_ptr(), saved.nbytes());
    }
  });
}

TensorFile read_tensor_file(const std::string& path) {
  const File in(path, O_RDONLY | O_CLOEXEC);
  const uint64_t size = in.size();
  uint64_t length = 0;
  if (size < sizeof length) {
    fail(path, c10::str("is not a safetensors file: it has only ", size, " bytes"));
  }
  in.read(&length, sizeof length);
  if (length > std::min(kMaxHeader, size - sizeof length)) {
    fail(path, c10::str("is not a safetensors file, or is cut off: its header claims ", length,
                        " of ", size, " bytes"));
  }
  std::string header(length, '\0');
  in.read(header.data(), header.size());

  TensorFile file;
  std::vector<Entry> entries;
  std::set<std::string> names;
  HeaderParser parser(path, header);
  parser.object([&](const std::string& name) {
    if (!names.insert(name).second) fail(path, "names tensor '" + name + "' twice");
    if (name == "__metadata__") {
      parser.object([&](const std::string& key) { file.metadata[key] = parser.string(); });
      return;
    }
    Entry entry{name, {}, {}, {}};
    parser.object([&](const std::string& key) {
      if (key == "dtype") {
        entry.dtype = parser.string();
      } else if (key == "shape") {
        entry.shape = parser.integers();
      } else if (key == "data_offsets") {
        entry.offsets = parser.integers();
      } else {
        fail(path, "tensor '" + name + "' has an unknown field '" + key + "'");
      }
    });
    entries.push_back(std::move(entry));
  });
  parser.end();

  std::vector<Tensor> tensors;
  for (const Entry& entry : entries) tensors.push_back(empty_tensor(path, entry));
  // In the order of their bytes, which the header's order need not be.
  std::vector<size_t> order(entries.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return entries[a].offsets < entries[b].offsets; });
  int64_t offset = 0;
  for (const size_t i : order) {
    if (entries[i].offsets[0] != offset) {
      fail(path, c10::str("tensor '", entries[i].name, "' must begin at byte ", offset, ", got ",
                          entries[i].offsets[0]));
    }
    offset = entries[i].offsets[1];
  }
  if (uint64_t(offset) != size - sizeof length - length) {
    fail(path, c10::str("must have ", sizeof length + length + uint64_t(offset), " bytes, got ",
                        size, ": it is cut off or damaged"));
  }
  for (const size_t i : order) in.read(tensors[i].mutable_data_ptr(), tensors[i].nbytes());
  for (size_t i = 0; i < entries.size(); ++i) {
    file.tensors.emplace_back(entries[i].name, tensors[i]);
  }
  return file;
}

void write_text_file(const std::string& path, const std::string& text) {
  write_atomically(path, [&](const File& out) { out.write(text.data(), text.size()); });
}

}  // namespace placket
