#include "kernels/panel_scores.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/panel_scores_avx512.h"
#endif

#include "base/simd.h"

namespace placket {
namespace {

constexpr int64_t kStepBytes = kPanelItems * kPanelStep;

// The bytes from `begin` on, a multiple of kPanelStep.
void pack_rest(const int8_t* const* items, int64_t count, int64_t begin, int64_t bytes,
               int8_t* panel) {
  const int64_t padded = panel_padded(bytes);
  std::memset(panel + begin * kPanelItems, 0, (padded - begin) * kPanelItems);
  for (int64_t d = begin; d < bytes; d += kPanelStep) {
    int8_t* to = panel + d * kPanelItems;
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * kPanelStep, items[i] + d, std::min(kPanelStep, bytes - d));
    }
  }
}

template <class Query, class Item, class Score>
void scores_portable(const Query* query, int64_t padded, const Item* panel, Score* scores) {
  constexpr int64_t kStep = kPanelStep / int64_t(sizeof(Item));
  Score sums[kPanelItems] = {};
  for (int64_t d = 0; d < padded / int64_t(sizeof(Item)); d += kStep) {
    for (int64_t i = 0; i < kPanelItems; ++i) {
      for (int64_t e = 0; e < kStep; ++e) {
        sums[i] += Score(query[d + e]) * Score(panel[d * kPanelItems + i * kStep + e]);
      }
    }
  }
  std::copy_n(sums, kPanelItems, scores);
}

#ifdef __x86_64__
#define PLACKET_AVX2 __attribute__((target("avx2")))
#define PLACKET_UNROLL _Pragma("GCC unroll 8")  // GCC keeps arrays in registers only then

// Twelve sums of 8 items each, of the 16 registers there are. Two products are added in 16 bits,
// where 2 * 127 * 128 has room.
constexpr int kAvx2Queries = 3;
constexpr int kVectors = kPanelItems / 8;

template <int Q>
PLACKET_AVX2 void int8_tile_avx2(const uint8_t* queries, int64_t padded, const int8_t* panel,
                                 int32_t* scores, int64_t stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[Q][kVectors];
  PLACKET_UNROLL
  for (int q = 0; q < Q; ++q) {
    PLACKET_UNROLL
    for (int i = 0; i < kVectors; ++i) sums[q][i] = _mm256_setzero_si256();
  }
  for (int64_t d = 0; d < padded; d += kPanelStep, panel += kStepBytes) {
    const auto* items = reinterpret_cast<const __m256i*>(panel);
    PLACKET_UNROLL
    for (int q = 0; q < Q; ++q) {
      int32_t four;
      std::memcpy(&four, queries + q * padded + d, sizeof four);
      const __m256i value = _mm256_set1_epi32(four);
      PLACKET_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        const __m256i pairs = _mm256_maddubs_epi16(value, _mm256_load_si256(items + i));
        sums[q][i] = _mm256_add_epi32(sums[q][i], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  PLACKET_UNROLL
  for (int q = 0; q < Q; ++q) {
    PLACKET_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores + q * stride) + i, sums[q][i]);
    }
  }
}

// 32 bytes of 8 items. `ahead` is where items lie that will be wanted next; the processor does
// not foresee so many at once.
PLACKET_AVX2 void transpose_avx2(const int8_t* const* items, int64_t d, int64_t ahead,
                                 int8_t* panel) {
  __m256i row[8], four[8];
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(items[i] + d));
    _mm_prefetch(reinterpret_cast<const char*>(items[i] + d + ahead), _MM_HINT_T0);
  }
  for (int i = 0; i < 8; i += 4) {
    const __m256i a = _mm256_unpacklo_epi32(row[i], row[i + 1]);
    const __m256i b = _mm256_unpackhi_epi32(row[i], row[i + 1]);
    const __m256i c = _mm256_unpacklo_epi32(row[i + 2], row[i + 3]);
    const __m256i e = _mm256_unpackhi_epi32(row[i + 2], row[i + 3]);
    four[i] = _mm256_unpacklo_epi64(a, c);
    four[i + 1] = _mm256_unpackhi_epi64(a, c);
    four[i + 2] = _mm256_unpacklo_epi64(b, e);
    four[i + 3] = _mm256_unpackhi_epi64(b, e);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + i * kStepBytes),
                        _mm256_permute2x128_si256(four[i], four[i + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + (i + 4) * kStepBytes),
                        _mm256_permute2x128_si256(four[i], four[i + 4], 0x31));
  }
}

// What this processor and its system allow.
struct Abilities {
  bool avx2 = __builtin_cpu_supports("avx2") > 0;
  bool vnni = __builtin_cpu_supports("avx512vnni") > 0;
  bool bf16 = __builtin_cpu_supports("avx512bf16") > 0;
  bool int8_tiles = false, bfloat16_tiles = false;

  Abilities() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!vnni || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    // Linux keeps tiles for a process only once it has asked for them.
    constexpr long kRequest = 0x1023, kTileData = 18;
    if ((d & kTile) == 0 || syscall(SYS_arch_prctl, kRequest, kTileData) != 0) return;
    int8_tiles = (d & kInt8) != 0;
    bfloat16_tiles = bf16 && (d & kBfloat16) != 0;
  }
};

const Abilities& abilities() {
  static const Abilities here;
  return here;
}

// AMX: 32 queries to 32 items in four of the eight tiles of 16 x 64 bytes.
constexpr int64_t kTileRows = 16;
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileConfig kTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

#define PLACKET_AMX __attribute__((target("amx-tile,amx-int8,amx-bf16")))

// The last tiles of queries overlap those before them, so that all are full: at least kTileRows
// queries.
template <class Multiply>
PLACKET_AMX void tiles_amx(const void* queries, int64_t query_count, int64_t padded,
                           const void* panel, void* scores, int64_t stride,
                           const Multiply& multiply) {
  std::atomic_signal_fence(std::memory_order_seq_cst);  // GCC's loads of tiles claim no memory
  _tile_loadconfig(&kTiles);
  const auto* rows = static_cast<const char*>(queries);
  auto* to = static_cast<char*>(scores);
  const int64_t last = query_count - kTileRows, step = kStepBytes, bytes = 4 * stride;
  for (int64_t q = 0; q < query_count; q += 2 * kTileRows) {
    const int64_t one = std::min(q, last), two = std::min(q + kTileRows, last);
    const char *above = rows + one * padded, *below = rows + two * padded;
    const auto* items = static_cast<const char*>(panel);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < padded; d += kPanelRow, items += kPanelRow * kPanelItems) {
      _tile_loadd(6, items, step);
      _tile_loadd(7, items + kPanelRow, step);
      _tile_loadd(4, above + d, padded);
      _tile_loadd(5, below + d, padded);
      multiply();
    }
    _tile_stored(0, to + one * bytes, bytes);
    _tile_stored(1, to + one * bytes + kPanelRow, bytes);
    _tile_stored(2, to + two * bytes, bytes);
    _tile_stored(3, to + two * bytes + kPanelRow, bytes);
  }
  _tile_release();
}

PLACKET_AMX void int8_products() {
  _tile_dpbusd(0, 4, 6);
  _tile_dpbusd(1, 4, 7);
  _tile_dpbusd(2, 5, 6);
  _tile_dpbusd(3, 5, 7);
}

PLACKET_AMX void bfloat16_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Shares the queries out among tiles, of 1, 2, ... N queries, as evenly as it can.
template <class Query, class Item, class Score, size_t N>
void in_tiles(void (*const (&tiles)[N])(const Query*, int64_t, const Item*, Score*, int64_t),
              const Query* queries, int64_t query_count, int64_t padded, const Item* panel,
              Score* scores, int64_t stride) {
  const int64_t row = padded / int64_t(sizeof(Query));
  const int64_t count = (query_count + int64_t(N) - 1) / int64_t(N);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t q = query_count * t / count, end = query_count * (t + 1) / count;
    tiles[end - q - 1](queries + q * row, padded, panel, scores + q * stride, stride);
  }
}

#define PLACKET_TWELVE(f) \
  {f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>, f<9>, f<10>, f<11>, f<12>}
#endif

}  // namespace

void pack_panel(const void* const* items, int64_t count, int64_t bytes, void* panel) {
  const int8_t* rows[kPanelItems];
  for (int64_t i = 0; i < count; ++i) rows[i] = static_cast<const int8_t*>(items[i]);
  auto* to = static_cast<int8_t*>(panel);
  int64_t done = 0;
#ifdef __x86_64__
  if (abilities().avx2 && count == kPanelItems) {
    done = bytes / 32 * 32;
    for (int64_t d = 0; d < done; d += 32) {
      for (int64_t i = 0; i < kPanelItems; i += 8) {
        transpose_avx2(rows + i, d, kPanelItems * bytes, to + d * kPanelItems + i * kPanelStep);
      }
    }
  }
#endif
  pack_rest(rows, count, done, bytes, to);
}

void int8_scores(const uint8_t* queries, int64_t query_count, int64_t padded, const int8_t* panel,
                 int32_t* scores, int64_t stride) {
#ifdef __x86_64__
  static constexpr decltype(&int8_tile_avx512<1>) kAvx512[] = PLACKET_TWELVE(int8_tile_avx512);
  static constexpr decltype(&int8_tile_avx2<1>) kAvx2[kAvx2Queries] = {
      int8_tile_avx2<1>, int8_tile_avx2<2>, int8_tile_avx2<3>};
  const Abilities& here = abilities();
  if (here.int8_tiles && query_count >= kTileRows) {
    return tiles_amx(queries, query_count, padded, panel, scores, stride, int8_products);
  }
  if (here.vnni) return in_tiles(kAvx512, queries, query_count, padded, panel, scores, stride);
  if (here.avx2) return in_tiles(kAvx2, queries, query_count, padded, panel, scores, stride);
#endif
  for (int64_t q = 0; q < query_count; ++q) {
    scores_portable(queries + q * padded, padded, panel, scores + q * stride);
  }
}

bool multiplies_int8() {
#ifdef __x86_64__
  return abilities().vnni;
#else
  return false;
#endif
}

bool multiplies_bfloat16() {
#ifdef __x86_64__
  return abilities().bf16;
#else
  return false;
#endif
}

void bfloat16_scores(const BFloat16* queries, int64_t query_count, int64_t padded,
                     const BFloat16* panel, float* scores, int64_t stride) {
#ifdef __x86_64__
  static constexpr decltype(&bfloat16_tile_avx512<1>) kAvx512[] =
      PLACKET_TWELVE(bfloat16_tile_avx512);
  if (abilities().bfloat16_tiles && query_count >= kTileRows) {
    return tiles_amx(queries, query_count, padded, panel, scores, stride, bfloat16_products);
  }
  if (abilities().bf16) {
    return in_tiles(kAvx512, queries, query_count, padded, panel, scores, stride);
  }
#endif
  for (int64_t q = 0; q < query_count; ++q) {
    scores_portable(queries + q * (padded / 2), padded, panel, scores + q * stride);
  }
}

// The cast keeps the product within what one instruction does.
PLACKET_SIMD int32_t int8_dot(const int16_t* query, const int8_t* item, int64_t dims) {
  int32_t sum = 0;
  for (int64_t d = 0; d < dims; ++d) sum += int32_t(query[d]) * int32_t(int16_t(item[d]));
  return sum;
}

}  // namespace placket
