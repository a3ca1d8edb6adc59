#pragma once

#include <cstdint>
#include <cstring>

#include "base/host_device.h"

namespace placket {

// A candidate's place in a ranking as one number, smaller is earlier: score descending, then row
// ascending. Rows are below 2^32; the score is not NaN, and -0 counts as 0.
PLACKET_HOST_DEVICE inline uint64_t rank_key(float score, int64_t row) {
  score += 0.0f;
  uint32_t bits;
  memcpy(&bits, &score, sizeof bits);
  const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~ascending) << 32 | uint64_t(row);
}

PLACKET_HOST_DEVICE inline float score_of(uint64_t key) {
  const uint32_t ascending = ~uint32_t(key >> 32);
  const uint32_t bits = ascending >> 31 ? ascending & 0x7fffffffu : ~ascending;
  float score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

PLACKET_HOST_DEVICE inline int64_t row_of(uint64_t key) { return int64_t(key & 0xffffffffu); }

PLACKET_HOST_DEVICE inline bool same_score(uint64_t key, uint64_t other) {
  return key >> 32 == other >> 32;
}

// Behind every candidate's key; its score would be NaN.
constexpr uint64_t kNoKey = ~uint64_t{0};

constexpr int64_t kMostRankedRows = int64_t(1) << 32;

}  // namespace placket
