#pragma once

#include <array>
#include <cstdint>

namespace placket {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the block
// is a function of key and counter alone, so a result never depends on which thread asks first.
inline std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  std::array<uint32_t, 4> c = {uint32_t(counter_low), uint32_t(counter_low >> 32),
                               uint32_t(counter_high), uint32_t(counter_high >> 32)};
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
    c = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// A stream of random numbers named by (seed, purpose, a, b), for example (seed, kSampler, epoch,
// triplet). Streams of different names are independent.
class RandomStream {
 public:
  // Purpose and b go into the key, a and the position in the stream into the counter.
  RandomStream(uint64_t seed, uint32_t purpose, uint64_t a, uint32_t b = 0)
      : key_(seed ^
             ((uint64_t{purpose} << 32) ^ (uint64_t{b} * 0x9E3779B1u)) * 0xBF58476D1CE4E5B9ull),
        high_(a) {}

  uint32_t next() {
    if (used_ == 4) {
      block_ = philox(key_, position_++, high_);
      used_ = 0;
    }
    return block_[used_++];
  }

  // Uniform in [0, bound), bound >= 1, without modulo bias (Lemire, 2019).
  uint32_t below(uint32_t bound) {
    uint64_t product = uint64_t{next()} * bound;
    if (uint32_t(product) < bound) {
      const uint32_t threshold = uint32_t(-bound) % bound;
      while (uint32_t(product) < threshold) product = uint64_t{next()} * bound;
    }
    return uint32_t(product >> 32);
  }

  // Uniform in [0, 1) with 24 bits.
  float uniform() { return float(next() >> 8) * (1.0f / 16777216.0f); }

 private:
  uint64_t key_;
  uint64_t high_;
  uint64_t position_ = 0;
  std::array<uint32_t, 4> block_{};
  int used_ = 4;
};

// What a stream is drawn for: the numbers are part of every saved run, so they never change.
enum RandomPurpose : uint32_t {
  kRandomSampler = 1,
  kRandomAugment = 2,
  kRandomDropout = 3,
  kRandomInitialise = 4,
  kRandomBootstrap = 5,
  kRandomViews = 6,
  kRandomPrompts = 7,
};

}  // namespace placket
