#pragma once

#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "requirement.h"

namespace placket::fuzz {

using Bytes = std::vector<uint8_t>;

// The mutant in progress, which the sanitizers' callback keeps where it fails; never destroyed, as
// leaks are found after main. A negative number is none.
struct Mutant {
  int64_t number = -1;
  Bytes bytes;
  std::string ending;

  static Mutant& current() {
    static auto* mutant = new Mutant;
    return *mutant;
  }

  // From now on a mutant that fails is kept as mutant-N.<ending> in the working folder.
  static void keep_failures(const std::string& ending) {
    current().ending = ending;
    __sanitizer_set_death_callback([] {
      const Mutant& mutant = current();
      if (mutant.number < 0) return;
      const std::string path = "mutant-" + std::to_string(mutant.number) + "." + mutant.ending;
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(mutant.bytes.data()), ssize_t(mutant.bytes.size()));
      std::cerr << "mutant " << mutant.number << " kept as " << path << "\n";
    });
  }
};

inline Bytes read_seed(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Bytes bytes{std::istreambuf_iterator<char>(file), {}};
  require(bytes.size() > 4, "seed is readable: " + path);
  return bytes;
}

// Damages bytes of any format. Every choice is drawn from one stream.
class ByteMutator {
 public:
  ByteMutator(Bytes bytes, RandomStream& random) : bytes_(std::move(bytes)), random_(random) {}

  void truncate() { bytes_.resize(below(bytes_.size())); }

  void flip_bits() {
    if (bytes_.empty()) return;
    for (size_t flips = 1 + below(16); flips > 0; --flips) {
      bytes_[below(bytes_.size())] ^= uint8_t(1u << below(8));
    }
  }

  void overwrite_run() {
    const auto [begin, end] = run();
    const bool same = below(2) == 0;
    const uint8_t value = one_of<uint8_t>({0x00, 0xff, 0x80, 0x7f});
    for (auto at = begin; at < end; ++at) bytes_[size_t(at)] = same ? value : byte();
  }

  void remove_run() {
    const auto [begin, end] = run();
    bytes_.erase(bytes_.begin() + begin, bytes_.begin() + end);
  }

  void duplicate_run() {
    const auto [begin, end] = run();
    const Bytes copy(bytes_.begin() + begin, bytes_.begin() + end);
    bytes_.insert(bytes_.begin() + ptrdiff_t(below(bytes_.size() + 1)), copy.begin(), copy.end());
  }

  Bytes take() { return std::move(bytes_); }

 protected:
  size_t below(size_t bound) { return bound == 0 ? 0 : random_.below(uint32_t(bound)); }
  uint8_t byte() { return uint8_t(random_.next()); }
  template <typename T, size_t n>
  T one_of(const T (&values)[n]) {
    return values[below(n)];
  }

  // Begin and end of some bytes, short as a rule.
  std::pair<ptrdiff_t, ptrdiff_t> run() {
    const size_t begin = below(bytes_.size());
    const size_t most = below(4) == 0 ? bytes_.size() : 64;
    const size_t end = std::min(bytes_.size(), begin + 1 + below(most));
    return {ptrdiff_t(begin), ptrdiff_t(end)};
  }

  Bytes bytes_;
  RandomStream& random_;
};

}  // namespace placket::fuzz
