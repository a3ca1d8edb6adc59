// The AVX-512 passes on any processor: SIMDe's functions stand for the intrinsics.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#if defined(__AVX__)
#error "SIMDe takes the name __m512i only where the compiler's own header is left out"
#endif

// What SIMDe 0.7.4 lacks, or has under a wrong signature.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#if !defined(_mm512_srai_epi32)
static __m512i _mm512_srai_epi32(__m512i values, int bits) {
  simde__m512i_private p = simde__m512i_to_private(values);
  for (int i = 0; i < 16; ++i) p.i32[i] >>= bits;
  return simde__m512i_from_private(p);
}
#endif
#if !defined(_mm512_cvtepu8_epi32)
static __m512i _mm512_cvtepu8_epi32(__m128i bytes) {
  const simde__m128i_private from = simde__m128i_to_private(bytes);
  simde__m512i_private to;
  for (int i = 0; i < 16; ++i) to.i32[i] = from.u8[i];
  return simde__m512i_from_private(to);
}
#endif

#define PLACKET_AVX512
#define avx512 avx512_emulated  // another name than that of the true ones in this program
#include "kernels/resample_passes_avx512.h"
#include "resample_cases.h"

namespace placket {
namespace {

TEST(Resample, EmulatedAvx512EqualsPlain) { expect_same_bytes_as_plain<avx512_emulated::Passes>(); }

}  // namespace
}  // namespace placket
