#include "base/crc32.h"

#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace placket {
namespace {

constexpr uint32_t kPolynomial = 0xedb88320;  // bit i is the coefficient of x^(31 - i)

constexpr uint32_t times_x(uint32_t value) {
  return (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
}

// Eight tables, so that eight bytes are taken a step.
struct Tables {
  uint32_t value[8][256];
  constexpr Tables() : value() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
      value[0][i] = crc;
    }
    for (int t = 1; t < 8; ++t) {
      for (uint32_t i = 0; i < 256; ++i) {
        value[t][i] = (value[t - 1][i] >> 8) ^ value[0][value[t - 1][i] & 0xff];
      }
    }
  }
};
constexpr Tables kTables;

// Takes bytes into a register that was not inverted yet.
uint32_t take_bytes(uint32_t crc, const uint8_t* bytes, size_t length) {
  for (; length >= 8; length -= 8, bytes += 8) {
    uint64_t word;
    std::memcpy(&word, bytes, sizeof word);
    word ^= crc;
    crc = 0;
    for (int t = 0; t < 8; ++t) crc ^= kTables.value[7 - t][(word >> (8 * t)) & 0xff];
  }
  for (; length > 0; --length, ++bytes) {
    crc = (crc >> 8) ^ kTables.value[0][(crc ^ *bytes) & 0xff];
  }
  return crc;
}

#ifdef __x86_64__
#define PLACKET_PCLMUL __attribute__((target("pclmul,sse4.1")))

// What 64 bits are multiplied by to move them `bits` further ahead, modulo the polynomial. A
// product of reflected operands is short by one power of x, a 32-bit factor in 64 bits by 32.
constexpr int64_t shift_factor(int bits) {
  uint32_t value = 0x80000000u;
  for (int i = 0; i < bits - 32; ++i) value = times_x(value);
  return int64_t(uint64_t(value) << 1);
}

// 16 bytes of the message, to be joined to those that lie `kBytes` behind them (Gopal et al., Fast
// CRC Computation for Generic Polynomials Using PCLMULQDQ, Intel 2009).
template <int kBytes>
PLACKET_PCLMUL inline __m128i moved(__m128i message) {
  // The lower half holds the higher powers.
  const __m128i factors = _mm_set_epi64x(shift_factor(8 * kBytes), shift_factor(8 * kBytes + 64));
  return _mm_xor_si128(_mm_clmulepi64_si128(message, factors, 0x00),
                       _mm_clmulepi64_si128(message, factors, 0x11));
}

PLACKET_PCLMUL inline __m128i load(const uint8_t* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

// Folds 64 bytes a step into 64, and these into 16 that have the same remainder.
PLACKET_PCLMUL uint32_t take_folded(uint32_t crc, const uint8_t* bytes, size_t length) {
  __m128i part[4];
  for (int i = 0; i < 4; ++i) part[i] = load(bytes + 16 * i);
  part[0] = _mm_xor_si128(part[0], _mm_cvtsi32_si128(int(crc)));
  for (bytes += 64, length -= 64; length >= 64; bytes += 64, length -= 64) {
    for (int i = 0; i < 4; ++i) part[i] = _mm_xor_si128(moved<64>(part[i]), load(bytes + 16 * i));
  }
  __m128i last = part[0];
  for (int i = 1; i < 4; ++i) last = _mm_xor_si128(moved<16>(last), part[i]);
  uint8_t rest[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), last);
  return take_bytes(take_bytes(0, rest, sizeof rest), bytes, length);
}
#endif

}  // namespace

uint32_t crc32(const void* data, size_t length) {
  const auto* bytes = static_cast<const uint8_t*>(data);
#ifdef __x86_64__
  static const bool folds =
      __builtin_cpu_supports("pclmul") > 0 && __builtin_cpu_supports("sse4.1") > 0;
  if (folds && length >= 64) return ~take_folded(~uint32_t(0), bytes, length);
#endif
  return ~take_bytes(~uint32_t(0), bytes, length);
}

}  // namespace placket
