#include "kernels/class_centres.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"

// A thread takes whole classes and adds each one's rows in their order, which a counting sort
// gives: the bits depend on no other class and no thread. Sums over a row run in 64-byte lanes,
// whatever the instruction set.
namespace placket {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;

template <class A>
using Lanes __attribute__((vector_size(64))) = A;
template <class A>
constexpr int64_t kLanes = 64 / int64_t(sizeof(A));

template <class A>
inline __attribute__((always_inline)) A inverse_norm(const A* x, int64_t count) {
  Lanes<A> lanes = {};
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    Lanes<A> v;
    memcpy(&v, x + i, sizeof v);
    lanes += v * v;
  }
  A square = 0;
  for (; i < count; ++i) square += x[i] * x[i];
  for (int64_t l = 0; l < kLanes<A>; ++l) square += lanes[l];
  const A norm = std::sqrt(square);
  // Written so that a NaN norm stays NaN.
  return A(1) / (norm < A(kCentreFloor) ? A(kCentreFloor) : norm);
}

// moved = normalise(kept centre + taken sum); `sum` may be `moved`.
template <class A>
inline __attribute__((always_inline)) void blend(const A* centre, A kept, const A* sum, A taken,
                                                 int64_t dims, A* moved) {
  for (int64_t d = 0; d < dims; ++d) moved[d] = kept * centre[d] + taken * sum[d];
  const A inverse = inverse_norm(moved, dims);
  for (int64_t d = 0; d < dims; ++d) moved[d] *= inverse;
}

#define PLACKET_LEAVES(A)                                                                    \
  PLACKET_SIMD void add_unit_row(const A* row, int64_t dims, A* sum) {                       \
    const A inverse = inverse_norm(row, dims);                                               \
    for (int64_t d = 0; d < dims; ++d) sum[d] += row[d] * inverse;                           \
  }                                                                                          \
  PLACKET_SIMD void blend_unit(const A* centre, A kept, const A* sum, A taken, int64_t dims, \
                               A* moved) {                                                   \
    blend(centre, kept, sum, taken, dims, moved);                                            \
  }

PLACKET_LEAVES(float)
PLACKET_LEAVES(double)
#undef PLACKET_LEAVES

// Rows of class c are order[begin[c]] to order[begin[c + 1]], ascending.
struct RowsByClass {
  std::vector<int64_t> begin, order;
};

template <class T>
RowsByClass rows_by_class(const ClassRows<T>& in) {
  const auto takes_part = [&](int64_t row) {
    return in.classes[row] >= 0 && in.classes[row] < in.count;
  };
  RowsByClass out{std::vector<int64_t>(size_t(in.count) + 2),
                  std::vector<int64_t>(size_t(in.rows))};
  // Counted two places on, so that filling moves begin[c + 1] to where c ends.
  for (int64_t row = 0; row < in.rows; ++row) {
    if (takes_part(row)) ++out.begin[size_t(in.classes[row]) + 2];
  }
  std::partial_sum(out.begin.begin(), out.begin.end(), out.begin.begin());
  for (int64_t row = 0; row < in.rows; ++row) {
    if (takes_part(row)) out.order[size_t(out.begin[size_t(in.classes[row]) + 1]++)] = row;
  }
  return out;
}

// Calls f(c, count of rows, sum [dims]) for each class; the sum is kept in row c of `sums`.
template <class T, class F>
void sum_classes(const ClassRows<T>& in, accumulate_t<T>* sums, const F& f) {
  using A = accumulate_t<T>;
  const RowsByClass by_class = rows_by_class(in);
  const int64_t elements = (in.rows + in.count) * in.dims / std::max<int64_t>(in.count, 1);
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(elements, 1));
  parallel_for(0, in.count, grain, [&](int64_t first, int64_t last) {
    std::vector<A> wide(std::is_same_v<T, A> ? 0 : size_t(in.dims));
    for (int64_t c = first; c < last; ++c) {
      A* sum = sums + c * in.dims;
      std::fill_n(sum, in.dims, A(0));
      const int64_t begin = by_class.begin[size_t(c)], end = by_class.begin[size_t(c) + 1];
      for (int64_t i = begin; i < end; ++i) {
        const T* row = in.embeddings + by_class.order[size_t(i)] * in.dims;
        if constexpr (std::is_same_v<T, A>) {
          add_unit_row(row, in.dims, sum);
        } else {
          std::copy_n(row, in.dims, wide.data());
          add_unit_row(wide.data(), in.dims, sum);
        }
      }
      f(c, end - begin, sum);
    }
  });
}

// `sum` may be `moved`.
template <class A>
void move_centre(const Centres<A>& in, int64_t c, A count, const A* sum, A* moved) {
  const A* centre = in.centres + c * in.dims;
  if (count == A(0)) {
    std::copy_n(centre, in.dims, moved);
  } else {
    blend_unit(centre, A(in.momentum), sum, A(1 - in.momentum) / count, in.dims, moved);
  }
}

}  // namespace

template <class T>
void class_sums_cpu(const ClassRows<T>& rows, accumulate_t<T>* sums, accumulate_t<T>* counts) {
  using A = accumulate_t<T>;
  sum_classes(rows, sums, [&](int64_t c, int64_t count, A*) { counts[c] = A(count); });
}

template <class A>
void class_centres_of_sums_cpu(const Centres<A>& centres, const A* sums, const A* counts,
                               A* moved) {
  const int64_t grain = kElementsPerThread / std::max<int64_t>(centres.dims, 1);
  parallel_for(0, centres.count, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      move_centre(centres, c, counts[c], sums + c * centres.dims, moved + c * centres.dims);
    }
  });
}

template <class T>
void class_centres_cpu(const ClassRows<T>& rows, const Centres<accumulate_t<T>>& centres,
                       accumulate_t<T>* moved) {
  using A = accumulate_t<T>;
  sum_classes(rows, moved, [&](int64_t c, int64_t count, A* sum) {
    move_centre(centres, c, A(count), sum, sum);
  });
}

#define PLACKET_INSTANTIATE(T)                                                              \
  template void class_sums_cpu<T>(const ClassRows<T>&, accumulate_t<T>*, accumulate_t<T>*); \
  template void class_centres_cpu<T>(const ClassRows<T>&, const Centres<accumulate_t<T>>&,  \
                                     accumulate_t<T>*)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE
template void class_centres_of_sums_cpu<float>(const Centres<float>&, const float*, const float*,
                                               float*);
template void class_centres_of_sums_cpu<double>(const Centres<double>&, const double*,
                                                const double*, double*);

}  // namespace placket
