// The AVX-512 tile on any processor: SIMDe's functions stand for the intrinsics.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#if defined(__AVX__)
#error "SIMDe takes the name __m512 only where the compiler's own header is left out"
#endif

#define PLACKET_AVX512
#define tile_avx512 tile_avx512_emulated  // another name than that of the true one in this program
#include <gtest/gtest.h>

#include <vector>

#include "kernels/dot_scores_avx512.h"

namespace placket {
namespace {

// Whole numbers: SIMDe rounds the product that the instruction does not.
template <int Q>
void expect_products(bool add) {
  constexpr int64_t kItems = 32, kDepth = 21, kStride = 40;
  std::vector<float> queries(Q * kDotBlock), scores(Q * kStride, 5);
  struct alignas(64) Panel {
    float values[kDepth * kItems];
  } panel;
  for (size_t i = 0; i < queries.size(); ++i) queries[i] = float(i * 7 % 11) - 5;
  for (int64_t i = 0; i < kDepth * kItems; ++i) panel.values[i] = float(i * 5 % 13) - 6;
  tile_avx512_emulated<Q>(queries.data(), panel.values, kDepth, scores.data(), kStride, add);
  for (int64_t q = 0; q < Q; ++q) {
    for (int64_t i = 0; i < kStride; ++i) {
      float expected = add || i >= kItems ? 5 : 0;
      for (int64_t d = 0; d < kDepth && i < kItems; ++d) {
        expected += queries[q * kDotBlock + d] * panel.values[d * kItems + i];
      }
      ASSERT_EQ(scores[q * kStride + i], expected) << Q << " queries, at " << q << ", " << i;
    }
  }
}

TEST(DotScores, EmulatedAvx512Tile) {
  for (const bool add : {false, true}) {
    expect_products<1>(add);
    expect_products<7>(add);
    expect_products<8>(add);
  }
}

}  // namespace
}  // namespace placket
