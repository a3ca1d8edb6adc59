// unit_rows: one warp takes one row. contrast: one block takes one anchor, its threads stride over
// the row of cosines three times (largest, sums, gradient) while the row stays in cache; sums meet
// by shuffles and in shared memory in a fixed order, so results do not depend on scheduling. The
// numerator has its own largest cosine, so that one far below the denominator does not vanish.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/region_patch_info_nce.h"

namespace placket {
namespace {

constexpr int kRowWarps = 4;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

template <class T>
__global__ void unit_rows_kernel(UnitRows<T> pass) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + threadIdx.y;
  if (row >= pass.rows) return;
  const T* input = pass.input + pass.order[row] * pass.dims;
  A square = 0;
  for (int64_t d = threadIdx.x; d < pass.dims; d += kWarpSize) square += A(input[d]) * A(input[d]);
  const A norm = sqrt(warp_sum(square));
  const A inverse = A(1) / (norm < A(kUnitFloor) ? A(kUnitFloor) : norm);
  for (int64_t d = threadIdx.x; d < pass.dims; d += kWarpSize) {
    pass.unit[row * pass.dims + d] = A(input[d]) * inverse;
  }
  if (threadIdx.x == 0) pass.inverse[row] = inverse;
}

template <class T>
__global__ void unit_rows_backward_kernel(UnitRowsBackward<T> pass) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kRowWarps + threadIdx.y;
  if (row >= pass.rows) return;
  const A* grad = pass.grad + row * pass.dims;
  const A* unit = pass.unit + row * pass.dims;
  T* out = pass.grad_input + pass.order[row] * pass.dims;
  A along = 0;
  for (int64_t d = threadIdx.x; d < pass.dims; d += kWarpSize) along += grad[d] * unit[d];
  along = warp_sum(along);
  const A inverse = pass.inverse[row];
  // A row under the floor is divided by a constant.
  if (inverse >= A(1 / kUnitFloor)) along = 0;
  for (int64_t d = threadIdx.x; d < pass.dims; d += kWarpSize) {
    out[d] = T((grad[d] - along * unit[d]) * inverse);
  }
}

template <class A>
__device__ A block_max(A value) {
  __shared__ A warps[kWarps];
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = warps[0];
  for (int i = 1; i < kWarps; ++i) value = warps[i] > value ? warps[i] : value;
  return value;
}

// What an anchor's row of cosines sums up to; every thread gets it.
template <class A>
struct Anchor {
  int64_t row, begin, end, label;
  A scale;
  A highest, nearest;  // largest cosine in the denominator and in the numerator
  A* patch;
  A* background;  // of the anchor's attribute, from begin on
  int64_t backgrounds;
  A denominator, numerator;

  __device__ explicit Anchor(const ContrastBlock<A>& block) {
    const int64_t index = blockIdx.x;
    row = block.first + index;
    begin = block.begin[row];
    end = block.end[row];
    label = block.labels[row];
    scale = A(1 / block.temperature);
    patch = block.patch + index * block.rows;
    backgrounds = block.backgrounds == 0 ? 0 : end - begin;
    background = block.backgrounds == 0 ? nullptr
                                        : block.background + index * block.backgrounds +
                                              (begin - block.backgrounds_first);

    A high = A(-INFINITY), near = A(-INFINITY);
    for (int64_t j = threadIdx.x; j < block.rows; j += kThreads) {
      high = patch[j] > high ? patch[j] : high;
      if (positive(block, j)) near = patch[j] > near ? patch[j] : near;
    }
    for (int64_t k = threadIdx.x; k < backgrounds; k += kThreads) {
      high = background[k] > high ? background[k] : high;
    }
    highest = block_max(high);
    nearest = block_max(near);
    A all = 0, outside = 0, own = 0;
    for (int64_t j = threadIdx.x; j < block.rows; j += kThreads) {
      all += exp((patch[j] - highest) * scale);
      if (positive(block, j)) own += exp((patch[j] - nearest) * scale);
    }
    for (int64_t k = threadIdx.x; k < backgrounds; k += kThreads) {
      outside += exp((background[k] - highest) * scale);
    }
    denominator = block_sum<kWarps>(all + A(block.alpha) * outside);
    numerator = block_sum<kWarps>(own);
  }

  __device__ A loss() const {
    return (highest - nearest) * scale + log(denominator) - log(numerator);
  }

  __device__ bool positive(const ContrastBlock<A>& block, int64_t j) const {
    return j >= begin && j < end && block.labels[j] == label;
  }
};

template <class A>
__global__ void contrast_kernel(ContrastBlock<A> block, A* loss) {
  const Anchor<A> anchor(block);
  if (threadIdx.x == 0) loss[blockIdx.x] = anchor.loss();
}

template <class A>
__global__ void contrast_gradient_kernel(ContrastBlock<A> block, A* loss) {
  const Anchor<A> anchor(block);
  if (threadIdx.x == 0) loss[blockIdx.x] = anchor.loss();
  const A each = A(1 / (double(block.rows) * block.temperature));
  const A share = each / anchor.denominator;
  for (int64_t j = threadIdx.x; j < block.rows; j += kThreads) {
    const A cosine = anchor.patch[j];
    A g = share * exp((cosine - anchor.highest) * anchor.scale);
    if (anchor.positive(block, j)) {
      g -= each / anchor.numerator * exp((cosine - anchor.nearest) * anchor.scale);
    }
    anchor.patch[j] = g;
  }
  A* background = block.background + int64_t(blockIdx.x) * block.backgrounds;
  for (int64_t k = threadIdx.x; k < block.backgrounds; k += kThreads) {
    const int64_t j = block.backgrounds_first + k;
    // Backgrounds of other attributes have no part in this anchor's loss.
    background[k] =
        j >= anchor.begin && j < anchor.end
            ? A(block.alpha) * share * exp((background[k] - anchor.highest) * anchor.scale)
            : A(0);
  }
}

unsigned row_blocks(int64_t rows) { return unsigned((rows + kRowWarps - 1) / kRowWarps); }

}  // namespace

template <class T>
const char* launch_unit_rows(const UnitRows<T>& pass, Stream stream) {
  if (pass.rows == 0) return nullptr;
  unit_rows_kernel<T><<<row_blocks(pass.rows), dim3(kWarpSize, kRowWarps), 0, stream>>>(pass);
  return launch_error();
}

template <class T>
const char* launch_unit_rows_backward(const UnitRowsBackward<T>& pass, Stream stream) {
  if (pass.rows == 0) return nullptr;
  unit_rows_backward_kernel<T>
      <<<row_blocks(pass.rows), dim3(kWarpSize, kRowWarps), 0, stream>>>(pass);
  return launch_error();
}

template <class A>
const char* launch_contrast(const ContrastBlock<A>& block, A* loss, Stream stream) {
  if (block.anchors == 0) return nullptr;
  contrast_kernel<A><<<unsigned(block.anchors), kThreads, 0, stream>>>(block, loss);
  return launch_error();
}

template <class A>
const char* launch_contrast_gradient(const ContrastBlock<A>& block, A* loss, Stream stream) {
  if (block.anchors == 0) return nullptr;
  contrast_gradient_kernel<A><<<unsigned(block.anchors), kThreads, 0, stream>>>(block, loss);
  return launch_error();
}

#define PLACKET_INSTANTIATE(T)                                       \
  template const char* launch_unit_rows(const UnitRows<T>&, Stream); \
  template const char* launch_unit_rows_backward(const UnitRowsBackward<T>&, Stream)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

template const char* launch_contrast(const ContrastBlock<float>&, float*, Stream);
template const char* launch_contrast(const ContrastBlock<double>&, double*, Stream);
template const char* launch_contrast_gradient(const ContrastBlock<float>&, float*, Stream);
template const char* launch_contrast_gradient(const ContrastBlock<double>&, double*, Stream);

}  // namespace placket
