// The AVX-512 tiles on any processor: SIMDe's functions stand for the intrinsics.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#if defined(__AVX__)
#error "SIMDe takes the name __m512 only where the compiler's own header is left out"
#endif

#define PLACKET_VNNI
#define PLACKET_BF16
// Other names than those of the true ones in this program.
#define int8_tile_avx512 int8_tile_avx512_emulated
#define bfloat16_tile_avx512 bfloat16_tile_avx512_emulated
#include <gtest/gtest.h>

#include "kernels/panel_scores_avx512.h"
#include "panel_scores_cases.h"

namespace placket {
namespace {

template <int Q>
void expect_products() {
  for (const int64_t dims : {1, 33, 129}) {
    Int8Case(Q, kPanelItems, dims)
        .expect([](const uint8_t* queries, int64_t, int64_t padded, const int8_t* panel,
                   int32_t* scores, int64_t stride) {
          int8_tile_avx512_emulated<Q>(queries, padded, panel, scores, stride);
        });
    BFloat16Case(Q, kPanelItems, dims)
        .expect([](const BFloat16* queries, int64_t, int64_t padded, const BFloat16* panel,
                   float* scores, int64_t stride) {
          bfloat16_tile_avx512_emulated<Q>(queries, padded, panel, scores, stride);
        });
  }
}

TEST(PanelScores, EmulatedAvx512Tiles) {
  expect_products<1>();
  expect_products<11>();
  expect_products<12>();
}

}  // namespace
}  // namespace placket
