#include "kernels/dot_scores.h"

#include <algorithm>
#include <memory>

#ifdef __x86_64__
#include <immintrin.h>

#include "kernels/dot_scores_avx512.h"
#endif

// The plan is that of BLIS (Van Zee and van de Geijn, ACM TOMS 2015). So much of the queries stays
// in the second-level cache as kQueryChunk of them have in one block of dimensions. A panel of
// items is transposed into the first-level cache and meets these queries a few at a time: a tile of
// scores stays in registers while the dimensions go by, items in the lanes, one query's value in
// all of them. So a lane holds the chain of one pair, whatever the width of a register.
namespace placket {
namespace {

constexpr int64_t kQueryChunk = 256;
constexpr int64_t kMostFew = 4;  // queries

struct Kernel : DotKernel<float> {
  // For 1, 2, ... queries and a multiple of eight items, or null: reads the items where they lie.
  using Few = void (*)(const DotRows& in, float* scores, int64_t stride);
  Few few[kMostFew];
  // For eight items wherever they lie, or null.
  void (*listed)(const float* query, int64_t dims, const float* const* items, float* scores);
};

template <class A, int Q>
void tile_portable(const A* queries, const A* panel, int64_t depth, A* scores, int64_t stride,
                   bool add) {
  constexpr int I = 16;
  A sums[Q][I] = {};
  for (int64_t d = 0; d < depth; ++d) {
    for (int q = 0; q < Q; ++q) {
      for (int i = 0; i < I; ++i) sums[q][i] += queries[q * kDotBlock + d] * panel[d * I + i];
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int i = 0; i < I; ++i) {
      A& score = scores[q * stride + i];
      score = add ? score + sums[q][i] : sums[q][i];
    }
  }
}

template <class A>
void transpose_portable(const A* rows, int64_t stride, int64_t depth, A* panel, int64_t width) {
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t i = 0; i < 8; ++i) panel[d * width + i] = rows[i * stride + d];
  }
}

template <class A>
constexpr DotKernel<A> kPortable = {
    2, 16, {tile_portable<A, 1>, tile_portable<A, 2>}, transpose_portable<A>};

#ifdef __x86_64__
#define PLACKET_AVX2 __attribute__((target("avx2,fma")))

// Rows one after another, and wherever they lie.
struct Strided {
  const float* first;
  int64_t stride;
  const float* operator[](int64_t i) const { return first + i * stride; }
};
struct Listed {
  const float* const* rows;
  int64_t first;
  const float* operator[](int64_t i) const { return rows[i] + first; }
};

// columns[e] holds value d + e of eight rows.
template <class Rows>
PLACKET_AVX2 inline void transpose_8x8(const Rows& rows, int64_t d, __m256* columns) {
  __m256 half[8];  // rows i and i + 4 beside each other, values 0 to 3 and 4 to 7
  for (int i = 0; i < 4; ++i) {
    for (int h = 0; h < 2; ++h) {
      half[4 * h + i] =
          _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + d + 4 * h)),
                               _mm_loadu_ps(rows[i + 4] + d + 4 * h), 1);
    }
  }
  for (int h = 0; h < 2; ++h) {
    const __m256 ab_low = _mm256_unpacklo_ps(half[4 * h], half[4 * h + 1]);
    const __m256 ab_high = _mm256_unpackhi_ps(half[4 * h], half[4 * h + 1]);
    const __m256 cd_low = _mm256_unpacklo_ps(half[4 * h + 2], half[4 * h + 3]);
    const __m256 cd_high = _mm256_unpackhi_ps(half[4 * h + 2], half[4 * h + 3]);
    columns[4 * h] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
    columns[4 * h + 1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    columns[4 * h + 2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    columns[4 * h + 3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
  }
}

PLACKET_AVX2 void transpose_avx2(const float* rows, int64_t stride, int64_t depth, float* panel,
                                 int64_t width) {
  for (int64_t d = 0; d < depth; d += 8) {
    __m256 columns[8];
    transpose_8x8(Strided{rows, stride}, d, columns);
    for (int i = 0; i < 8; ++i) _mm256_store_ps(panel + (d + i) * width, columns[i]);
  }
}

// Of the 16 registers the largest tile takes 12 for sums.
template <int Q>
PLACKET_AVX2 void tile_avx2(const float* queries, const float* panel, int64_t depth, float* scores,
                            int64_t stride, bool add) {
  __m256 sums[Q][2];
  PLACKET_UNROLL
  for (int q = 0; q < Q; ++q) sums[q][0] = sums[q][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int64_t d = 0; d < depth; ++d) {
    const __m256 low = _mm256_load_ps(panel + 16 * d), high = _mm256_load_ps(panel + 16 * d + 8);
    PLACKET_UNROLL
    for (int q = 0; q < Q; ++q) {
      const __m256 value = _mm256_broadcast_ss(queries + q * kDotBlock + d);
      sums[q][0] = _mm256_fmadd_ps(value, low, sums[q][0]);
      sums[q][1] = _mm256_fmadd_ps(value, high, sums[q][1]);
    }
  }
  PLACKET_UNROLL
  for (int q = 0; q < Q; ++q) {
    PLACKET_UNROLL
    for (int h = 0; h < 2; ++h) {
      float* score = scores + q * stride + 8 * h;
      const __m256 sum = sums[q][h];
      _mm256_storeu_ps(score, add ? _mm256_add_ps(_mm256_loadu_ps(score), sum) : sum);
    }
  }
}

// Scores of eight rows. Not limited by arithmetic, so that a register of them at a time is enough.
// The processor foresees neither the jump to the next eight nor eight rows apart: `ahead` is where
// values lie that will be wanted soon.
template <int Q, class Rows>
PLACKET_AVX2 inline void eight_avx2(const float* queries, int64_t dims, const Rows& rows,
                                    const Rows& ahead, float* scores, int64_t stride) {
  for (int64_t begin = 0; begin < dims; begin += kDotBlock) {
    const int64_t end = std::min(begin + kDotBlock, dims);
    __m256 sums[Q];
    PLACKET_UNROLL
    for (int q = 0; q < Q; ++q) sums[q] = _mm256_setzero_ps();
    for (int64_t d = begin; d < end; d += 8) {
      for (int r = 0; r < 8; ++r) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead[r] + d), _MM_HINT_T0);
      }
      __m256 columns[8];
      transpose_8x8(rows, d, columns);
      PLACKET_UNROLL
      for (int e = 0; e < 8; ++e) {
        PLACKET_UNROLL
        for (int q = 0; q < Q; ++q) {
          const __m256 value = _mm256_broadcast_ss(queries + q * dims + d + e);
          sums[q] = _mm256_fmadd_ps(value, columns[e], sums[q]);
        }
      }
    }
    PLACKET_UNROLL
    for (int q = 0; q < Q; ++q) {
      float* score = scores + q * stride;
      const bool add = begin > 0;
      _mm256_storeu_ps(score, add ? _mm256_add_ps(_mm256_loadu_ps(score), sums[q]) : sums[q]);
    }
  }
}

template <int Q>
PLACKET_AVX2 void few_avx2(const DotRows& in, float* scores, int64_t stride) {
  for (int64_t i = 0; i < in.item_count; i += 8) {
    const Strided rows = {in.items + i * in.dims, in.dims};
    eight_avx2<Q>(in.queries, in.dims, rows, Strided{rows[8], in.dims}, scores + i, stride);
  }
}

PLACKET_AVX2 void listed_avx2(const float* query, int64_t dims, const float* const* items,
                              float* scores) {
  constexpr int64_t kAhead = 128;  // values
  eight_avx2<1>(query, dims, Listed{items, 0}, Listed{items, kAhead}, scores, 8);
}

constexpr Kernel kAvx2 = {
    {6,
     16,
     {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>, tile_avx2<5>, tile_avx2<6>},
     transpose_avx2},
    {few_avx2<1>, few_avx2<2>, few_avx2<3>, few_avx2<4>},
    listed_avx2};

constexpr Kernel kAvx512 = {{8,
                             32,
                             {tile_avx512<1>, tile_avx512<2>, tile_avx512<3>, tile_avx512<4>,
                              tile_avx512<5>, tile_avx512<6>, tile_avx512<7>, tile_avx512<8>},
                             transpose_avx2},
                            {few_avx2<1>, few_avx2<2>, few_avx2<3>, few_avx2<4>},
                            listed_avx2};

Kernel best_kernel() {
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f")) return kAvx512;
  return fma ? kAvx2 : Kernel{kPortable<float>, {}, nullptr};
}
#else
Kernel best_kernel() { return {kPortable<float>, {}, nullptr}; }
#endif

const Kernel& kernel_here() {
  static const Kernel kernel = best_kernel();
  return kernel;
}

struct alignas(64) Panel {
  float values[kDotBlock * kMostTileItems];
};

// The items of a panel that is not full, with zeros behind them, and their scores.
struct Rest {
  float rows[kMostTileItems * kDotBlock] = {};
  float scores[kMostTileQueries * kMostTileItems];
};

void few_queries(Kernel::Few few, const DotRows& in, float* scores, int64_t stride) {
  const int64_t rest = in.item_count % 8, eights = in.item_count - rest;
  DotRows part = in;
  part.item_count = eights;
  few(part, scores, stride);
  if (rest == 0) return;
  const auto rows = std::make_unique<float[]>(8 * in.dims);
  std::copy_n(in.items + eights * in.dims, rest * in.dims, rows.get());
  part.items = rows.get();
  part.item_count = 8;
  float eight[kMostFew][8];
  few(part, eight[0], 8);
  for (int64_t q = 0; q < in.query_count; ++q) {
    std::copy_n(eight[q], rest, scores + q * stride + eights);
  }
}

class Product {
 public:
  Product(const Kernel& kernel, const DotRows& in, float* scores, int64_t stride)
      : kernel_(kernel), in_(in), scores_(scores), stride_(stride) {}

  void run() {
    const int64_t chunk = std::min(in_.query_count, kQueryChunk);
    const int64_t span = kQueryChunk / chunk * kDotBlock;
    chunk_ = std::make_unique<float[]>(chunk * std::min(span, in_.dims + kDotBlock));
    for (int64_t q = 0; q < in_.query_count; q += chunk) {
      for (int64_t d = 0; d < in_.dims; d += span) {
        run(q, std::min(q + chunk, in_.query_count), d, std::min(d + span, in_.dims));
      }
    }
  }

 private:
  // Some queries and dimensions, all items.
  void run(int64_t begin, int64_t end, int64_t first, int64_t last) {
    const int64_t count = end - begin;
    for (int64_t d = first; d < last; d += kDotBlock) {
      for (int64_t q = 0; q < count; ++q) {
        std::copy_n(in_.queries + (begin + q) * in_.dims + d, std::min(kDotBlock, last - d),
                    chunk_.get() + (d - first) * count + q * kDotBlock);
      }
    }
    for (int64_t i = 0; i < in_.item_count; i += kernel_.items) {
      for (int64_t d = first; d < last; d += kDotBlock) {
        panel(begin, count, chunk_.get() + (d - first) * count, i, d);
      }
    }
  }

  void panel(int64_t begin, int64_t count, const float* queries, int64_t i, int64_t d) {
    const int64_t depth = std::min(kDotBlock, in_.dims - d);
    const int64_t width = std::min(kernel_.items, in_.item_count - i);
    const bool full = width == kernel_.items;
    const float* rows = in_.items + i * in_.dims + d;
    int64_t row_stride = in_.dims;
    if (!full) {
      if (!rest_) rest_ = std::make_unique<Rest>();
      for (int64_t k = 0; k < width; ++k) {
        std::copy_n(rows + k * in_.dims, depth, rest_->rows + k * kDotBlock);
      }
      rows = rest_->rows;
      row_stride = kDotBlock;
    }
    for (int64_t k = 0; k < kernel_.items; k += 8) {
      kernel_.transpose(rows + k * row_stride, row_stride, depth, panel_->values + k,
                        kernel_.items);
    }
    const int64_t tiles = (count + kernel_.queries - 1) / kernel_.queries;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t q = count * t / tiles, tile_end = count * (t + 1) / tiles;
      const DotKernel<float>::Tile tile = kernel_.tiles[tile_end - q - 1];
      float* scores = scores_ + (begin + q) * stride_ + i;
      if (full) {
        tile(queries + q * kDotBlock, panel_->values, depth, scores, stride_, d > 0);
        continue;
      }
      tile(queries + q * kDotBlock, panel_->values, depth, rest_->scores, kernel_.items, false);
      for (int64_t r = 0; r < tile_end - q; ++r) {
        for (int64_t k = 0; k < width; ++k) {
          const float sum = rest_->scores[r * kernel_.items + k];
          float& score = scores[r * stride_ + k];
          score = d > 0 ? score + sum : sum;
        }
      }
    }
  }

  const Kernel& kernel_;
  const DotRows& in_;
  float* scores_;
  int64_t stride_;
  std::unique_ptr<float[]> chunk_;  // of queries: [blocks of dimensions, queries, kDotBlock]
  std::unique_ptr<Panel> panel_ = std::make_unique<Panel>();
  std::unique_ptr<Rest> rest_;
};

}  // namespace

template <>
const DotKernel<float>& dot_kernel() {
  return kernel_here();
}

template <>
const DotKernel<double>& dot_kernel() {
  return kPortable<double>;
}

void dot_scores_cpu(const DotRows& in, float* scores, int64_t stride) {
  const Kernel& kernel = kernel_here();
  if (in.dims == 0) {
    for (int64_t q = 0; q < in.query_count; ++q)
      std::fill_n(scores + q * stride, in.item_count, 0.0f);
    return;
  }
  if (in.query_count == 0) return;
  if (in.query_count <= kMostFew && kernel.few[in.query_count - 1]) {
    return few_queries(kernel.few[in.query_count - 1], in, scores, stride);
  }
  if (in.item_count > 0) Product(kernel, in, scores, stride).run();
}

void listed_scores_cpu(const float* query, const float* const* items, int64_t item_count,
                       int64_t dims, float* scores) {
  const Kernel& kernel = kernel_here();
  if (kernel.listed == nullptr) {
    for (int64_t i = 0; i < item_count; ++i) {
      dot_scores_cpu({query, items[i], 1, 1, dims}, scores + i, 1);
    }
    return;
  }
  for (int64_t i = 0; i < item_count; i += 8) {
    const int64_t count = std::min<int64_t>(8, item_count - i);
    const float* rows[8];
    float eight[8] = {};
    for (int64_t r = 0; r < 8; ++r) rows[r] = items[i + std::min(r, count - 1)];
    kernel.listed(query, dims, rows, eight);
    std::copy_n(eight, count, scores + i);
  }
}

}  // namespace placket
