#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace placket {

// exp for arguments up to 0 in a form that compilers vectorise: 2^n times the Taylor polynomial of
// degree 7 on [-ln 2 / 2, ln 2 / 2], whose remainder is below half a unit in the last place.
// Arguments below -87 count as -87; NaN passes through.
inline __attribute__((always_inline)) float exp_of(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // Adding it leaves the nearest integer in the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float y = 1.0f / 5040;
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = (y * r) * r + r + 1.0f;
  return y * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
}

inline __attribute__((always_inline)) double exp_of(double x) { return std::exp(x); }

}  // namespace placket
