#pragma once

#include <cstdint>
#include <cstring>

#include "base/host_device.h"

namespace placket {

// The upper half of a float, with c10::BFloat16's layout; arithmetic is done in float.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;

  // Rounds to nearest, ties to even; NaN stays NaN.
  PLACKET_HOST_DEVICE explicit BFloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? uint16_t{0x7fc0} : uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }

  PLACKET_HOST_DEVICE operator float() const {
    const uint32_t word = uint32_t{bits} << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
  }
};

// The type sums are kept in: double for double, float for everything narrower.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

}  // namespace placket
