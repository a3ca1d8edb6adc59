#pragma once

#include <bit>
#include <cstdint>

namespace placket {

// A candidate's place in a ranking as one number, smaller is earlier: score descending, then row
// ascending. Rows are below 2^32; the score is not NaN, and -0 counts as 0.
inline uint64_t rank_key(float score, int64_t row) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
  const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~ascending) << 32 | uint64_t(row);
}

inline float score_of(uint64_t key) {
  const uint32_t ascending = ~uint32_t(key >> 32);
  return std::bit_cast<float>(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

inline int64_t row_of(uint64_t key) { return int64_t(key & 0xffffffffu); }

constexpr int64_t kMostRankedRows = int64_t(1) << 32;

}  // namespace placket
