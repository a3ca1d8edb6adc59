#include "base/random.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace placket {
namespace {

// The known answers of Random123's kat_vectors for philox4x32-10.
TEST(Philox, KnownAnswers) {
  const std::array<uint32_t, 4> zeros = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(philox(0, 0, 0), zeros);
  const std::array<uint32_t, 4> ones = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), ones);
}

TEST(RandomStream, IsAFunctionOfItsName) {
  RandomStream a(1, kRandomSampler, 3, 4), b(1, kRandomSampler, 3, 4);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.next(), b.next());
}

TEST(RandomStream, DifferentNamesDiffer) {
  std::set<uint32_t> first;
  int streams = 0;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (uint32_t purpose = 1; purpose < 4; ++purpose) {
      for (uint64_t a = 0; a < 8; ++a) {
        for (uint32_t b = 0; b < 8; ++b, ++streams) {
          first.insert(RandomStream(seed, purpose, a, b).next());
        }
      }
    }
  }
  // 768 draws of 32 bits: a single collision has a chance of 7e-5.
  EXPECT_EQ(int(first.size()), streams);
}

TEST(RandomStream, BelowIsUniform) {
  RandomStream stream(7, kRandomAugment, 0);
  std::vector<int> counts(6);
  for (int i = 0; i < 60000; ++i) ++counts[stream.below(6)];
  double chi_square = 0;
  for (const int count : counts) chi_square += (count - 10000.0) * (count - 10000.0) / 10000.0;
  // The 99.9 % point of chi-square with 5 degrees of freedom.
  EXPECT_LT(chi_square, 20.5);
}

}  // namespace
}  // namespace placket
