#include "kernels/region_patch_info_nce.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"
#include "kernels/lanes.h"

// A thread takes an anchor's row of cosines. The largest of them is subtracted before exp, whose
// values replace the cosines: one exp for each entry in either direction, and a positive's a second
// time under the numerator's own largest cosine, so that a numerator far below the denominator does
// not vanish.
namespace placket {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;

int64_t row_grain(int64_t length) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(length, 1));
}

// Replaces x by exp(scale x - shift) and returns the sum.
template <class A>
inline __attribute__((always_inline)) A exp_in_place(A* x, int64_t count, A scale, A shift) {
  for (int64_t i = 0; i < count; ++i) x[i] = exp_of(x[i] * scale - shift);
  return lane_sum(x, count);
}

template <class A>
inline __attribute__((always_inline)) A dot(const A* x, const A* y, int64_t count) {
  Lanes<A> lanes = {};
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    Lanes<A> v, w;
    memcpy(&v, x + i, sizeof v);
    memcpy(&w, y + i, sizeof w);
    lanes += v * w;
  }
  A sum = 0;
  for (; i < count; ++i) sum += x[i] * y[i];
  for (int64_t l = 0; l < kLanes<A>; ++l) sum += lanes[l];
  return sum;
}

#define PLACKET_LEAVES(A)                                                                   \
  PLACKET_SIMD A largest_of(const A* x, int64_t count) { return largest(x, count); }        \
  PLACKET_SIMD A exp_all(A* x, int64_t count, A scale, A shift) {                           \
    return exp_in_place(x, count, scale, shift);                                            \
  }                                                                                         \
  PLACKET_SIMD A dot_of(const A* x, const A* y, int64_t count) { return dot(x, y, count); } \
  PLACKET_SIMD void multiply(A* x, int64_t count, A factor) {                               \
    for (int64_t i = 0; i < count; ++i) x[i] *= factor;                                     \
  }

PLACKET_LEAVES(float)
PLACKET_LEAVES(double)
#undef PLACKET_LEAVES

// One anchor's row after exp.
template <class A>
struct Anchor {
  A* patch;       // exp(cos / temperature - shift)
  A* background;  // the same, of the anchor's attribute only
  int64_t backgrounds;
  A denominator;  // under the shift
  A loss;
  std::vector<std::pair<int64_t, A>> positives;  // row, share of the numerator
};

template <class A>
void contrast_anchor(const ContrastBlock<A>& block, int64_t index, Anchor<A>& anchor) {
  const int64_t row = block.first + index, begin = block.begin[row], end = block.end[row];
  const A scale = A(1 / block.temperature);
  anchor.patch = block.patch + index * block.rows;
  anchor.backgrounds = block.backgrounds == 0 ? 0 : end - begin;
  anchor.background = block.backgrounds == 0 ? nullptr
                                             : block.background + index * block.backgrounds +
                                                   (begin - block.backgrounds_first);

  anchor.positives.clear();
  A nearest = A(-INFINITY);
  for (int64_t j = begin; j < end; ++j) {
    if (block.labels[j] != block.labels[row]) continue;
    anchor.positives.emplace_back(j, anchor.patch[j]);
    nearest = std::max(nearest, anchor.patch[j]);
  }
  A numerator = 0;
  for (auto& [j, value] : anchor.positives) {
    value = std::exp((value - nearest) * scale);
    numerator += value;
  }
  for (auto& [j, value] : anchor.positives) value /= numerator;

  A highest = largest_of(anchor.patch, block.rows);
  if (anchor.backgrounds > 0) {
    highest = std::max(highest, largest_of(anchor.background, anchor.backgrounds));
  }
  const A shift = highest * scale;
  anchor.denominator = exp_all(anchor.patch, block.rows, scale, shift);
  if (anchor.backgrounds > 0) {
    anchor.denominator +=
        A(block.alpha) * exp_all(anchor.background, anchor.backgrounds, scale, shift);
  }
  anchor.loss = (highest - nearest) * scale + std::log(anchor.denominator) - std::log(numerator);
}

template <class A, class F>
void for_each_anchor(const ContrastBlock<A>& block, const F& f) {
  parallel_for(0, block.anchors, row_grain(block.rows), [&](int64_t first, int64_t last) {
    Anchor<A> anchor;
    for (int64_t i = first; i < last; ++i) {
      contrast_anchor(block, i, anchor);
      f(i, anchor);
    }
  });
}

}  // namespace

template <class T>
void unit_rows_cpu(const UnitRows<T>& pass) {
  using A = accumulate_t<T>;
  parallel_for(0, pass.rows, row_grain(pass.dims), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const T* input = pass.input + pass.order[i] * pass.dims;
      A* unit = pass.unit + i * pass.dims;
      for (int64_t d = 0; d < pass.dims; ++d) unit[d] = A(input[d]);
      const A norm = std::sqrt(dot_of(unit, unit, pass.dims));
      // Written so that a NaN norm stays NaN.
      pass.inverse[i] = A(1) / (norm < A(kUnitFloor) ? A(kUnitFloor) : norm);
      multiply(unit, pass.dims, pass.inverse[i]);
    }
  });
}

template <class T>
void unit_rows_backward_cpu(const UnitRowsBackward<T>& pass) {
  using A = accumulate_t<T>;
  parallel_for(0, pass.rows, row_grain(pass.dims), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const A* grad = pass.grad + i * pass.dims;
      const A* unit = pass.unit + i * pass.dims;
      T* out = pass.grad_input + pass.order[i] * pass.dims;
      const A inverse = pass.inverse[i];
      // A row under the floor is divided by a constant.
      const A along = inverse >= A(1 / kUnitFloor) ? A(0) : dot_of(grad, unit, pass.dims);
      for (int64_t d = 0; d < pass.dims; ++d) out[d] = T((grad[d] - along * unit[d]) * inverse);
    }
  });
}

template <class A>
void contrast_cpu(const ContrastBlock<A>& block, A* loss) {
  for_each_anchor(block, [&](int64_t i, const Anchor<A>& anchor) { loss[i] = anchor.loss; });
}

template <class A>
void contrast_gradient_cpu(const ContrastBlock<A>& block, A* loss) {
  const A each = A(1 / (double(block.rows) * block.temperature));
  for_each_anchor(block, [&](int64_t i, const Anchor<A>& anchor) {
    loss[i] = anchor.loss;
    const A share = each / anchor.denominator;
    multiply(anchor.patch, block.rows, share);
    for (const auto& [j, probability] : anchor.positives) anchor.patch[j] -= each * probability;
    if (block.backgrounds == 0) return;
    multiply(anchor.background, anchor.backgrounds, A(block.alpha) * share);
    // Backgrounds of other attributes have no part in this anchor's loss.
    A* row = block.background + i * block.backgrounds;
    std::fill(row, anchor.background, A(0));
    std::fill(anchor.background + anchor.backgrounds, row + block.backgrounds, A(0));
  });
}

#define PLACKET_INSTANTIATE(T)                     \
  template void unit_rows_cpu(const UnitRows<T>&); \
  template void unit_rows_backward_cpu(const UnitRowsBackward<T>&)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

template void contrast_cpu(const ContrastBlock<float>&, float*);
template void contrast_cpu(const ContrastBlock<double>&, double*);
template void contrast_gradient_cpu(const ContrastBlock<float>&, float*);
template void contrast_gradient_cpu(const ContrastBlock<double>&, double*);

}  // namespace placket
