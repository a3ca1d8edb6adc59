#include "kernels/cosine_triplet.h"

#include "base/bfloat16.h"
#include "base/parallel.h"
#include "kernels/cosine_triplet_row.h"

namespace placket {
namespace {

// Rows below this many elements are not worth a second thread.
constexpr int64_t kElementsPerThread = 1 << 15;

int64_t row_grain(int64_t dims) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(dims, 1));
}

template <class T>
TripletRow<accumulate_t<T>> sums(const CosineTriplet<T>& in, int64_t row) {
  TripletRow<accumulate_t<T>> s;
  const int64_t begin = row * in.dims;
  for (int64_t d = begin; d < begin + in.dims; ++d) {
    s.add(in.anchor[d], in.positive[d], in.negative[d]);
  }
  return s;
}

}  // namespace

template <class T>
void cosine_triplet_cpu(const CosineTriplet<T>& in, T* hinge) {
  using A = accumulate_t<T>;
  parallel_for(0, in.rows, row_grain(in.dims), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) hinge[row] = T(sums(in, row).hinge(A(in.margin)));
  });
}

template <class T>
void cosine_triplet_backward_cpu(const CosineTriplet<T>& in, const T* grad, T* grad_anchor,
                                 T* grad_positive, T* grad_negative) {
  using A = accumulate_t<T>;
  parallel_for(0, in.rows, row_grain(in.dims), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const TripletGradient<A> g(sums(in, row), A(in.margin), A(grad[row]));
      const int64_t begin = row * in.dims;
      for (int64_t d = begin; d < begin + in.dims; ++d) {
        const A a = A(in.anchor[d]), p = A(in.positive[d]), n = A(in.negative[d]);
        grad_anchor[d] = T(g.a_a * a + g.a_p * p + g.a_n * n);
        grad_positive[d] = T(g.p_p * p + g.p_a * a);
        grad_negative[d] = T(g.n_n * n + g.n_a * a);
      }
    }
  });
}

#define PLACKET_INSTANTIATE(T)                                      \
  template void cosine_triplet_cpu<T>(const CosineTriplet<T>&, T*); \
  template void cosine_triplet_backward_cpu<T>(const CosineTriplet<T>&, const T*, T*, T*, T*)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

}  // namespace placket
