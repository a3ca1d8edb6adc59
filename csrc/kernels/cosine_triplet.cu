// One warp takes one triplet: its lanes stride over the row, the five sums meet by shuffles, and
// the backward pass reads the row a second time from cache. Nothing is shared between warps, so
// results do not depend on the grid.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/cosine_triplet.h"
#include "kernels/cosine_triplet_row.h"

namespace placket {
namespace {

constexpr int kWarps = 4;

template <class T>
__device__ TripletRow<accumulate_t<T>> sums(const CosineTriplet<T>& in, int64_t begin, int lane) {
  TripletRow<accumulate_t<T>> s;
  for (int64_t d = begin + lane; d < begin + in.dims; d += kWarpSize) {
    s.add(in.anchor[d], in.positive[d], in.negative[d]);
  }
  s.aa = warp_sum(s.aa);
  s.pp = warp_sum(s.pp);
  s.nn = warp_sum(s.nn);
  s.ap = warp_sum(s.ap);
  s.an = warp_sum(s.an);
  return s;
}

template <class T>
__global__ void cosine_triplet_kernel(CosineTriplet<T> in, T* hinge) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= in.rows) return;
  const auto s = sums(in, row * in.dims, threadIdx.x);
  if (threadIdx.x == 0) hinge[row] = T(s.hinge(A(in.margin)));
}

template <class T>
__global__ void cosine_triplet_backward_kernel(CosineTriplet<T> in, const T* grad, T* grad_anchor,
                                               T* grad_positive, T* grad_negative) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= in.rows) return;
  const int64_t begin = row * in.dims;
  const TripletGradient<A> g(sums(in, begin, threadIdx.x), A(in.margin), A(grad[row]));
  for (int64_t d = begin + threadIdx.x; d < begin + in.dims; d += kWarpSize) {
    const A a = A(in.anchor[d]), p = A(in.positive[d]), n = A(in.negative[d]);
    grad_anchor[d] = T(g.a_a * a + g.a_p * p + g.a_n * n);
    grad_positive[d] = T(g.p_p * p + g.p_a * a);
    grad_negative[d] = T(g.n_n * n + g.n_a * a);
  }
}

unsigned blocks(int64_t rows) { return unsigned((rows + kWarps - 1) / kWarps); }

}  // namespace

template <class T>
const char* launch_cosine_triplet(const CosineTriplet<T>& in, T* hinge, Stream stream) {
  if (in.rows == 0) return nullptr;
  cosine_triplet_kernel<T><<<blocks(in.rows), dim3(kWarpSize, kWarps), 0, stream>>>(in, hinge);
  return launch_error();
}

template <class T>
const char* launch_cosine_triplet_backward(const CosineTriplet<T>& in, const T* grad,
                                           T* grad_anchor, T* grad_positive, T* grad_negative,
                                           Stream stream) {
  if (in.rows == 0) return nullptr;
  cosine_triplet_backward_kernel<T><<<blocks(in.rows), dim3(kWarpSize, kWarps), 0, stream>>>(
      in, grad, grad_anchor, grad_positive, grad_negative);
  return launch_error();
}

#define PLACKET_INSTANTIATE(T)                                                                  \
  template const char* launch_cosine_triplet<T>(const CosineTriplet<T>&, T*, Stream);           \
  template const char* launch_cosine_triplet_backward<T>(const CosineTriplet<T>&, const T*, T*, \
                                                         T*, T*, Stream)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

}  // namespace placket
