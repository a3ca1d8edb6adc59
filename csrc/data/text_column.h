#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace placket {

// Many short strings in one block, file names or sentences: a string of n bytes takes n + 4.
class TextColumn {
 public:
  TextColumn() = default;
  // The two blocks as bytes() and ends() give them. Throws std::invalid_argument where they do not
  // fit together.
  TextColumn(std::vector<char> bytes, std::vector<uint32_t> ends)
      : bytes_(std::move(bytes)), ends_(std::move(ends)) {
    if (!std::is_sorted(ends_.begin(), ends_.end()) ||
        bytes_.size() != (ends_.empty() ? 0 : ends_.back())) {
      throw std::invalid_argument("TextColumn: ends must rise to the number of bytes " +
                                  std::to_string(bytes_.size()));
    }
  }

  // Throws std::length_error where all strings together would take 4 GiB.
  void append(std::string_view text) {
    if (text.size() > std::numeric_limits<uint32_t>::max() - bytes_.size()) {
      throw std::length_error("TextColumn: strings must take less than 4 GiB together");
    }
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    ends_.push_back(uint32_t(bytes_.size()));
  }
  // Gives back what growing has taken beyond the strings.
  void shrink_to_fit() {
    bytes_.shrink_to_fit();
    ends_.shrink_to_fit();
  }

  int64_t size() const { return int64_t(ends_.size()); }
  std::string_view operator[](int64_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[size_t(i) - 1];
    return {bytes_.data() + begin, ends_[size_t(i)] - begin};
  }
  const std::vector<char>& bytes() const { return bytes_; }
  const std::vector<uint32_t>& ends() const { return ends_; }  // of each string, in bytes

 private:
  std::vector<char> bytes_;
  std::vector<uint32_t> ends_;
};

}  // namespace placket
