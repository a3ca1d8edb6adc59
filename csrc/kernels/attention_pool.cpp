#include "kernels/attention_pool.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"

// A thread takes a chunk of one image's channels and stays with it for all attributes, so that the
// values come from memory once and from the first-level cache after that. Where a channel's
// positions are contiguous each output is a dot product; in channels_last memory each position adds
// a row to the outputs. bfloat16 is widened into a small buffer first.
namespace placket {
namespace {

constexpr int64_t kChannels = 256;  // of a chunk; in channels_last memory also the row's length
constexpr int64_t kRowsAtOnce = 4;

// A block of this many attributes shares each load of the values.
constexpr int kBlock = 4;

// out[a] = sum_p weights[a, p] values[p], the last (a = attributes) under weights of 1.
template <class A>
inline __attribute__((always_inline)) void dots(const A* weights, const A* values,
                                                int64_t attributes, int64_t positions, A* out) {
  typedef A Lanes __attribute__((vector_size(32)));
  constexpr int64_t kLanes = 32 / sizeof(A);
  const int64_t whole = positions - positions % kLanes;
  Lanes total = {};
  for (int64_t p = 0; p < whole; p += kLanes) {
    Lanes v;
    memcpy(&v, values + p, sizeof v);
    total += v;
  }
  A rest = 0;
  for (int64_t p = whole; p < positions; ++p) rest += values[p];
  for (int64_t lane = 0; lane < kLanes; ++lane) rest += total[lane];
  out[attributes] = rest;
  int64_t a = 0;
  for (; a + kBlock <= attributes; a += kBlock) {
    const A* w = weights + a * positions;
    Lanes s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (int64_t p = 0; p < whole; p += kLanes) {
      Lanes v, w0, w1, w2, w3;
      memcpy(&v, values + p, sizeof v);
      memcpy(&w0, w + p, sizeof v);
      memcpy(&w1, w + positions + p, sizeof v);
      memcpy(&w2, w + 2 * positions + p, sizeof v);
      memcpy(&w3, w + 3 * positions + p, sizeof v);
      s0 += w0 * v;
      s1 += w1 * v;
      s2 += w2 * v;
      s3 += w3 * v;
    }
    A r0 = 0, r1 = 0, r2 = 0, r3 = 0;
    for (int64_t p = whole; p < positions; ++p) {
      r0 += w[p] * values[p];
      r1 += w[positions + p] * values[p];
      r2 += w[2 * positions + p] * values[p];
      r3 += w[3 * positions + p] * values[p];
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      r0 += s0[lane];
      r1 += s1[lane];
      r2 += s2[lane];
      r3 += s3[lane];
    }
    out[a] = r0;
    out[a + 1] = r1;
    out[a + 2] = r2;
    out[a + 3] = r3;
  }
  for (; a < attributes; ++a) {
    const A* w = weights + a * positions;
    Lanes s = {};
    for (int64_t p = 0; p < whole; p += kLanes) {
      Lanes v, x;
      memcpy(&v, values + p, sizeof v);
      memcpy(&x, w + p, sizeof x);
      s += x * v;
    }
    A r = 0;
    for (int64_t p = whole; p < positions; ++p) r += w[p] * values[p];
    for (int64_t lane = 0; lane < kLanes; ++lane) r += s[lane];
    out[a] = r;
  }
}

// sum[c] += the weighted sum of kRowsAtOnce rows of values.
template <class A>
inline __attribute__((always_inline)) void add_rows(const A* weights, const A* values,
                                                    int64_t stride, int64_t count, A* sum) {
  const A *v0 = values, *v1 = v0 + stride, *v2 = v1 + stride, *v3 = v2 + stride;
  const A w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
  for (int64_t c = 0; c < count; ++c) {
    sum[c] += (w0 * v0[c] + w1 * v1[c]) + (w2 * v2[c] + w3 * v3[c]);
  }
}

template <class A>
inline __attribute__((always_inline)) void add_row(A weight, const A* values, int64_t count,
                                                   A* sum) {
  for (int64_t c = 0; c < count; ++c) sum[c] += weight * values[c];
}

#define PLACKET_LEAVES(A)                                                                         \
  PLACKET_SIMD void dots_of(const A* weights, const A* values, int64_t attributes,                \
                            int64_t positions, A* out) {                                          \
    dots(weights, values, attributes, positions, out);                                            \
  }                                                                                               \
  PLACKET_SIMD void add_rows_to(const A* weights, const A* values, int64_t stride, int64_t count, \
                                A* sum) {                                                         \
    add_rows(weights, values, stride, count, sum);                                                \
  }                                                                                               \
  PLACKET_SIMD void add_row_to(A weight, const A* values, int64_t count, A* sum) {                \
    add_row(weight, values, count, sum);                                                          \
  }

PLACKET_LEAVES(float)
PLACKET_LEAVES(double)
#undef PLACKET_LEAVES

PLACKET_SIMD void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]);
}

// `count` values in the accumulation type: in place, or widened into the buffer.
template <class T>
const accumulate_t<T>* widened(const T* values, int64_t count, accumulate_t<T>* buffer) {
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    return values;
  } else {
    widen(values, count, buffer);
    return buffer;
  }
}

template <class T>
void pool_channels(const AttentionPool<T>& pass, const accumulate_t<T>* weights, int64_t image,
                   int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  std::vector<A> buffer(std::is_same_v<T, A> ? 0 : pass.positions);
  A out[AttentionPool<T>::kMaxAttributes + 1];
  for (int64_t c = first; c < last; ++c) {
    const T* row = pass.values + (image * pass.channels + c) * pass.positions;
    dots_of(weights, widened(row, pass.positions, buffer.data()), pass.attributes, pass.positions,
            out);
    for (int64_t a = 0; a < pass.attributes; ++a) {
      pass.pooled[(image * pass.attributes + a) * pass.channels + c] = T(out[a]);
    }
    if (pass.sums != nullptr) pass.sums[image * pass.channels + c] = out[pass.attributes];
  }
}

template <class T>
void pool_positions(const AttentionPool<T>& pass, const accumulate_t<T>* weights, int64_t image,
                    int64_t first, int64_t last) {
  using A = accumulate_t<T>;
  constexpr A kOnes[kRowsAtOnce] = {1, 1, 1, 1};
  const int64_t count = last - first;
  A sums[AttentionPool<T>::kMaxAttributes + 1][kChannels] = {};
  A buffer[kRowsAtOnce][kChannels];
  for (int64_t p = 0; p < pass.positions; p += kRowsAtOnce) {
    const T* rows = pass.values + (image * pass.positions + p) * pass.channels + first;
    const int64_t present = std::min(kRowsAtOnce, pass.positions - p);
    const A* v = nullptr;
    int64_t stride = kChannels;
    if constexpr (std::is_same_v<T, A>) {
      v = rows;
      stride = pass.channels;
    } else {
      for (int64_t r = 0; r < present; ++r) widen(rows + r * pass.channels, count, buffer[r]);
      v = buffer[0];
    }
    for (int64_t a = 0; a <= pass.attributes; ++a) {
      if (a == pass.attributes && pass.sums == nullptr) break;
      const A* w = a == pass.attributes ? kOnes : weights + a * pass.positions + p;
      if (present == kRowsAtOnce) {
        add_rows_to(w, v, stride, count, sums[a]);
      } else {
        for (int64_t r = 0; r < present; ++r) add_row_to(w[r], v + r * stride, count, sums[a]);
      }
    }
  }
  for (int64_t a = 0; a < pass.attributes; ++a) {
    T* pooled = pass.pooled + (image * pass.attributes + a) * pass.channels + first;
    for (int64_t c = 0; c < count; ++c) pooled[c] = T(sums[a][c]);
  }
  if (pass.sums != nullptr) {
    std::copy_n(sums[pass.attributes], count, pass.sums + image * pass.channels + first);
  }
}

}  // namespace

template <class T>
void attention_pool_cpu(const AttentionPool<T>& pass) {
  const int64_t chunks = (pass.channels + kChannels - 1) / kChannels;
  parallel_for(0, pass.images * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / chunks, first = i % chunks * kChannels;
      const int64_t last = std::min(first + kChannels, pass.channels);
      const auto* weights = pass.weights + image * pass.attributes * pass.positions;
      if (pass.channels_last) {
        pool_positions(pass, weights, image, first, last);
      } else {
        pool_channels(pass, weights, image, first, last);
      }
    }
  });
}

template void attention_pool_cpu(const AttentionPool<float>&);
template void attention_pool_cpu(const AttentionPool<double>&);
template void attention_pool_cpu(const AttentionPool<BFloat16>&);

}  // namespace placket
