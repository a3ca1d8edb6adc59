// First a warp takes each row's norm. Then one block takes one class: its threads look through the
// classes of kThreads rows at a time, ballots list the rows that are of it in ascending order, and
// thread t adds up the dimensions t, t + kThreads, ... of those, in the output's own row. No two
// threads write to one place, so the order of the sums, and with it the bits, is fixed. The same
// block then blends its sum with the centre and normalises it.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/class_centres.h"

namespace placket {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

template <class A>
__device__ A inverse_norm(A square) {
  const A norm = sqrt(square);
  // Written so that a NaN norm stays NaN.
  return A(1) / (norm < A(kCentreFloor) ? A(kCentreFloor) : norm);
}

template <class T>
__global__ void inverse_norms_kernel(ClassRows<T> in, accumulate_t<T>* inverse) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (row >= in.rows) return;
  const int lane = threadIdx.x % kWarpSize;
  A square = 0;
  for (int64_t d = lane; d < in.dims; d += kWarpSize) {
    const A x = A(in.embeddings[row * in.dims + d]);
    square += x * x;
  }
  square = warp_sum(square);
  if (lane == 0) inverse[row] = inverse_norm(square);
}

// Fills sum [dims] with the unit rows of the class and returns how many there are, to every thread
// of the block.
template <class T, class A>
__device__ int64_t sum_class(const ClassRows<T>& in, const A* inverse, int64_t own, A* sum) {
  __shared__ unsigned found[kWarps];
  for (int64_t d = threadIdx.x; d < in.dims; d += kThreads) sum[d] = A(0);
  int64_t count = 0;
  for (int64_t first = 0; first < in.rows; first += kThreads) {
    const int64_t row = first + threadIdx.x;
    const unsigned ballot = __ballot_sync(0xffffffffu, row < in.rows && in.classes[row] == own);
    __syncthreads();  // the last round's words have been read
    if (threadIdx.x % kWarpSize == 0) found[threadIdx.x / kWarpSize] = ballot;
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) {
      for (unsigned left = found[warp]; left != 0; left &= left - 1) {
        const int64_t member = first + warp * kWarpSize + __ffs(int(left)) - 1;
        const A factor = inverse[member];
        for (int64_t d = threadIdx.x; d < in.dims; d += kThreads) {
          sum[d] += A(in.embeddings[member * in.dims + d]) * factor;
        }
        ++count;
      }
    }
  }
  return count;
}

// `sum` may be `moved`: a thread reads and writes the same places.
template <class A>
__device__ void move_centre(const Centres<A>& in, int64_t own, A count, const A* sum, A* moved) {
  const A* centre = in.centres + own * in.dims;
  if (count == A(0)) {
    for (int64_t d = threadIdx.x; d < in.dims; d += kThreads) moved[d] = centre[d];
    return;
  }
  __shared__ A squares[kWarps];
  const A kept = A(in.momentum), taken = A(1 - in.momentum) / count;
  A square = 0;
  for (int64_t d = threadIdx.x; d < in.dims; d += kThreads) {
    const A x = kept * centre[d] + taken * sum[d];
    moved[d] = x;
    square += x * x;
  }
  square = warp_sum(square);
  if (threadIdx.x % kWarpSize == 0) squares[threadIdx.x / kWarpSize] = square;
  __syncthreads();
  square = 0;
  for (int warp = 0; warp < kWarps; ++warp) square += squares[warp];
  const A inverse = inverse_norm(square);
  for (int64_t d = threadIdx.x; d < in.dims; d += kThreads) moved[d] *= inverse;
}

template <class T, class A>
__global__ void class_sums_kernel(ClassRows<T> in, const A* inverse, A* sums, A* counts) {
  const int64_t own = blockIdx.x;
  const int64_t count = sum_class(in, inverse, own, sums + own * in.dims);
  if (threadIdx.x == 0) counts[own] = A(count);
}

template <class A>
__global__ void class_centres_of_sums_kernel(Centres<A> in, const A* sums, const A* counts,
                                             A* moved) {
  const int64_t own = blockIdx.x;
  move_centre(in, own, counts[own], sums + own * in.dims, moved + own * in.dims);
}

template <class T, class A>
__global__ void class_centres_kernel(ClassRows<T> in, Centres<A> centres, const A* inverse,
                                     A* moved) {
  const int64_t own = blockIdx.x;
  A* row = moved + own * in.dims;
  const int64_t count = sum_class(in, inverse, own, row);
  move_centre(centres, own, A(count), row, row);
}

template <class T>
void take_norms(const ClassRows<T>& rows, accumulate_t<T>* inverse, Stream stream) {
  if (rows.rows == 0) return;
  const auto blocks = unsigned((rows.rows + kWarps - 1) / kWarps);
  inverse_norms_kernel<T><<<blocks, kThreads, 0, stream>>>(rows, inverse);
}

}  // namespace

template <class T>
const char* launch_class_sums(const ClassRows<T>& rows, accumulate_t<T>* inverse,
                              accumulate_t<T>* sums, accumulate_t<T>* counts, Stream stream) {
  if (rows.count == 0) return nullptr;
  take_norms(rows, inverse, stream);
  class_sums_kernel<<<unsigned(rows.count), kThreads, 0, stream>>>(rows, inverse, sums, counts);
  return launch_error();
}

template <class A>
const char* launch_class_centres_of_sums(const Centres<A>& centres, const A* sums, const A* counts,
                                         A* moved, Stream stream) {
  if (centres.count == 0) return nullptr;
  class_centres_of_sums_kernel<<<unsigned(centres.count), kThreads, 0, stream>>>(centres, sums,
                                                                                 counts, moved);
  return launch_error();
}

template <class T>
const char* launch_class_centres(const ClassRows<T>& rows, const Centres<accumulate_t<T>>& centres,
                                 accumulate_t<T>* inverse, accumulate_t<T>* moved, Stream stream) {
  if (rows.count == 0) return nullptr;
  take_norms(rows, inverse, stream);
  class_centres_kernel<<<unsigned(rows.count), kThreads, 0, stream>>>(rows, centres, inverse,
                                                                      moved);
  return launch_error();
}

#define PLACKET_INSTANTIATE(T)                                                                    \
  template const char* launch_class_sums<T>(const ClassRows<T>&, accumulate_t<T>*,                \
                                            accumulate_t<T>*, accumulate_t<T>*, Stream);          \
  template const char* launch_class_centres<T>(const ClassRows<T>&,                               \
                                               const Centres<accumulate_t<T>>&, accumulate_t<T>*, \
                                               accumulate_t<T>*, Stream)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE
template const char* launch_class_centres_of_sums<float>(const Centres<float>&, const float*,
                                                         const float*, float*, Stream);
template const char* launch_class_centres_of_sums<double>(const Centres<double>&, const double*,
                                                          const double*, double*, Stream);

}  // namespace placket
