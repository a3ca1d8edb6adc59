#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "retrieval/ranking.h"

namespace placket {

// Rows of a database: those listed, or as many from `first` on.
struct RowSpan {
  const uint32_t* listed;
  int64_t first, count;

  int64_t operator[](int64_t i) const { return listed != nullptr ? listed[i] : first + i; }
  RowSpan part(int64_t begin, int64_t end) const {
    return {listed != nullptr ? listed + begin : nullptr, first + begin, end - begin};
  }
};

// The first k of a ranking, of the rows that have been shown.
class TopK {
 public:
  explicit TopK(int64_t k) : k_(k) {}

  // What a score has to reach to be among them.
  float least() const { return least_; }

  // Whether no score was NaN.
  [[nodiscard]] bool take(const float* scores, const RowSpan& rows);
  void take(const TopK& other) {
    for (const uint64_t key : other.keys_) take(key);
  }

  // In the order of the ranking; nothing is taken after that.
  const std::vector<uint64_t>& ranked();

 private:
  void take(uint64_t key);

  int64_t k_;
  std::vector<uint64_t> keys_;  // a heap with the last of them on top
  float least_ = -std::numeric_limits<float>::infinity();
};

// Sets flags[i] to whether scores[i] is not below `least`; NaN is not.
constexpr int64_t kFlags = 64;
void flag_reaching(const float* scores, int64_t count, float least, uint8_t* flags);

// Calls f(i) for every score that is not below `least()`, which may rise meanwhile.
template <class Least, class F>
void for_each_reaching(const float* scores, int64_t count, const Least& least, const F& f) {
  for (int64_t begin = 0; begin < count; begin += kFlags) {
    uint8_t flags[kFlags] = {};
    flag_reaching(scores + begin, std::min(kFlags, count - begin), least(), flags);
    for (int64_t group = 0; group < kFlags; group += 8) {
      uint64_t bits;
      std::memcpy(&bits, flags + group, sizeof bits);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t i = begin + group + std::countr_zero(bits) / 8;
        if (!(scores[i] < least())) f(i);
      }
    }
  }
}

}  // namespace placket
