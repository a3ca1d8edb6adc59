#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

// Functions in a form that compilers vectorise (GCC with -fno-trapping-math), to be inlined into
// the leaf functions of base/simd.h. exp and log of double are the library's.
namespace placket {

// Sums run in 32-byte lanes, whatever the instruction set, so that their bits do not depend on it.
template <class A>
using Lanes __attribute__((vector_size(32))) = A;
template <class A>
constexpr int64_t kLanes = 32 / int64_t(sizeof(A));

template <class A>
inline __attribute__((always_inline)) A lane_sum(const A* x, int64_t count) {
  Lanes<A> lanes = {};
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    Lanes<A> v;
    memcpy(&v, x + i, sizeof v);
    lanes += v;
  }
  A sum = 0;
  for (; i < count; ++i) sum += x[i];
  for (int64_t l = 0; l < kLanes<A>; ++l) sum += lanes[l];
  return sum;
}

// A NaN is passed over; it shows in the sums of exp.
template <class A>
inline __attribute__((always_inline)) A largest(const A* x, int64_t count) {
  Lanes<A> lanes = A(-INFINITY) - Lanes<A>{};
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    Lanes<A> v;
    memcpy(&v, x + i, sizeof v);
    lanes = v > lanes ? v : lanes;
  }
  A most = A(-INFINITY);
  for (; i < count; ++i) most = x[i] > most ? x[i] : most;
  for (int64_t l = 0; l < kLanes<A>; ++l) most = lanes[l] > most ? lanes[l] : most;
  return most;
}

// exp for arguments up to 0: 2^n times the Taylor polynomial of degree 7 on [-ln 2 / 2, ln 2 / 2],
// whose remainder is below half a unit in the last place. Where the result would be subnormal 2^n
// is written as 0, and so is the result.
inline __attribute__((always_inline)) float exp_of(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // Adding it leaves the nearest integer in the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  x = x < -88.0f ? -88.0f : x;
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

// log(1 + u) for u in [0, 1], as 2 atanh(u / (2 + u)); the first term of its series that is left
// out is a quarter of a unit in the last place.
inline __attribute__((always_inline)) float log1p_of(float u) {
  const float t = u / (2.0f + u), square = t * t;
  float y = 1.0f / 13;
  y = y * square + 1.0f / 11;
  y = y * square + 1.0f / 9;
  y = y * square + 1.0f / 7;
  y = y * square + 0.2f;
  y = y * square + 1.0f / 3;
  return 2.0f * (t + t * square * y);
}

inline __attribute__((always_inline)) double log1p_of(double u) { return std::log1p(u); }

}  // namespace placket
