// Products of a strip of rows with all columns are in memory. info_nce_rows and pairwise_sigmoid:
// one block takes one row, its threads stride over the columns. info_nce_columns: one block takes
// 32 columns, a column of threads each, which stride over the strip's rows; strips follow each
// other on the stream, so that a column's statistics have one writer at a time. Sums meet by
// shuffles and in shared memory in a fixed order, so results do not depend on scheduling.
// info_nce_gradient: one thread takes one pair.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/pair_contrast.h"

namespace placket {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kColumnRows = 16;

template <class A>
__device__ A logit(const PairStrip<A>& strip, int64_t row, int64_t column) {
  const A product = strip.products[row * strip.columns + column];
  return *strip.scale * product + (strip.bias == nullptr ? A(0) : *strip.bias);
}

// The largest logit, the sum of exp(logit - largest), and the positives' sum and number.
template <class A>
struct Sums {
  A high = A(-INFINITY), sum = 0, positive_sum = 0, positives = 0;

  __device__ void take(A logit, PairKind kind) {
    if (kind == kLeftOut) return;
    if (kind == kPositive) {
      positive_sum += logit;
      positives += 1;
    }
    raise(logit);
    sum += exp(logit - shift());
  }

  __device__ void take(const Sums& other) {
    raise(other.high);
    // Without a pair the other's sum is 0, or NaN.
    sum += other.high == A(-INFINITY) ? other.sum : other.sum * exp(other.high - high);
    positive_sum += other.positive_sum;
    positives += other.positives;
  }

 private:
  // A NaN is passed over; it shows in the sum.
  __device__ void raise(A value) {
    if (!(value > high)) return;
    sum *= exp(high - value);
    high = value;
  }
  __device__ A shift() const { return high == A(-INFINITY) ? A(0) : high; }
};

template <class A>
__device__ Sums<A> shuffled(const Sums<A>& own, int offset) {
  Sums<A> other;
  other.high = __shfl_down_sync(0xffffffffu, own.high, offset);
  other.sum = __shfl_down_sync(0xffffffffu, own.sum, offset);
  other.positive_sum = __shfl_down_sync(0xffffffffu, own.positive_sum, offset);
  other.positives = __shfl_down_sync(0xffffffffu, own.positives, offset);
  return other;
}

template <class A>
__global__ void info_nce_rows_kernel(PairStrip<A> strip, PairStatistics<A> rows) {
  __shared__ A parts[kWarps][4];
  const int64_t row = blockIdx.x;
  Sums<A> own;
  for (int64_t c = threadIdx.x; c < strip.columns; c += kThreads) {
    own.take(logit(strip, row, c), strip.pairs.kind(strip.first + row, c));
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) own.take(shuffled(own, offset));
  if (threadIdx.x % kWarpSize == 0) {
    A* part = parts[threadIdx.x / kWarpSize];
    part[0] = own.high;
    part[1] = own.sum;
    part[2] = own.positive_sum;
    part[3] = own.positives;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    Sums<A> other;
    other.high = parts[w][0];
    other.sum = parts[w][1];
    other.positive_sum = parts[w][2];
    other.positives = parts[w][3];
    own.take(other);
  }
  rows.lse[row] = own.high + log(own.sum);
  rows.positive_sum[row] = own.positive_sum;
  rows.positives[row] = own.positives;
}

template <class A>
__global__ void info_nce_columns_kernel(PairStrip<A> strip, PairColumns<A> columns) {
  __shared__ A parts[4][kColumnRows][kWarpSize];
  const int64_t column = int64_t(blockIdx.x) * kWarpSize + threadIdx.x;
  Sums<A> own;
  for (int64_t r = threadIdx.y; column < strip.columns && r < strip.rows; r += kColumnRows) {
    own.take(logit(strip, r, column), strip.pairs.kind(strip.first + r, column));
  }
  parts[0][threadIdx.y][threadIdx.x] = own.high;
  parts[1][threadIdx.y][threadIdx.x] = own.sum;
  parts[2][threadIdx.y][threadIdx.x] = own.positive_sum;
  parts[3][threadIdx.y][threadIdx.x] = own.positives;
  __syncthreads();
  if (threadIdx.y != 0 || column >= strip.columns) return;
  Sums<A> all;
  all.high = columns.high[column];
  all.sum = columns.sum[column];
  all.positive_sum = columns.positive_sum[column];
  all.positives = columns.positives[column];
  for (int r = 0; r < kColumnRows; ++r) {
    Sums<A> other;
    other.high = parts[0][r][threadIdx.x];
    other.sum = parts[1][r][threadIdx.x];
    other.positive_sum = parts[2][r][threadIdx.x];
    other.positives = parts[3][r][threadIdx.x];
    all.take(other);
  }
  columns.high[column] = all.high;
  columns.sum[column] = all.sum;
  columns.positive_sum[column] = all.positive_sum;
  columns.positives[column] = all.positives;
}

template <class A, class T>
__global__ void info_nce_gradient_kernel(PairStrip<A> strip, PairWeights<A> rows,
                                         PairWeights<A> columns, T* gradient, int64_t chunks) {
  const int64_t row = int64_t(blockIdx.x) / chunks;
  const int64_t column = int64_t(blockIdx.x) % chunks * kThreads + threadIdx.x;
  if (column >= strip.columns) return;
  const int64_t i = strip.first + row;
  const PairKind kind = strip.pairs.kind(i, column);
  A value = 0;
  if (kind != kLeftOut) {
    const A z = logit(strip, row, column);
    value = rows.weight[i] * exp(z - rows.lse[i]);
    if (columns.lse != nullptr) value += columns.weight[column] * exp(z - columns.lse[column]);
    if (kind == kPositive) {
      value -= rows.target[i] + (columns.lse == nullptr ? A(0) : columns.target[column]);
    }
  }
  gradient[row * strip.columns + column] = T(value);
}

template <class A, class T>
__global__ void pairwise_sigmoid_kernel(PairStrip<A> strip, PairRowSums<A> rows, T* gradient) {
  const int64_t row = blockIdx.x;
  A loss = 0, grad_bias = 0;
  bool any = false;
  for (int64_t c = threadIdx.x; c < strip.columns; c += kThreads) {
    const PairKind kind = strip.pairs.kind(strip.first + row, c);
    A slope = 0;
    if (kind != kLeftOut) {
      const A z = logit(strip, row, c);
      const A wrong = kind == kPositive ? -z : z;  // the loss is softplus of it
      const A u = exp(-fabs(z));
      const A share = (wrong > 0 ? A(1) : u) / (1 + u);
      slope = kind == kPositive ? -share : share;
      loss += (wrong > 0 ? wrong : A(0)) + log1p(u);
      any = true;
    }
    grad_bias += slope;
    if (gradient != nullptr) gradient[row * strip.columns + c] = T(slope);
  }
  loss = block_sum<kWarps>(loss);
  grad_bias = block_sum<kWarps>(grad_bias);
  const int found = __syncthreads_or(any);
  if (threadIdx.x != 0) return;
  rows.loss[row] = loss;
  rows.grad_bias[row] = grad_bias;
  rows.compared[row] = found != 0;
}

}  // namespace

template <class A>
const char* launch_info_nce_rows(const PairStrip<A>& strip, const PairStatistics<A>& rows,
                                 Stream stream) {
  if (strip.rows == 0) return nullptr;
  info_nce_rows_kernel<A><<<unsigned(strip.rows), kThreads, 0, stream>>>(strip, rows);
  return launch_error();
}

template <class A>
const char* launch_info_nce_columns(const PairStrip<A>& strip, const PairColumns<A>& columns,
                                    Stream stream) {
  if (strip.columns == 0) return nullptr;
  const unsigned blocks = unsigned((strip.columns + kWarpSize - 1) / kWarpSize);
  info_nce_columns_kernel<A><<<blocks, dim3(kWarpSize, kColumnRows), 0, stream>>>(strip, columns);
  return launch_error();
}

template <class A, class T>
const char* launch_info_nce_gradient(const PairStrip<A>& strip, const PairWeights<A>& rows,
                                     const PairWeights<A>& columns, T* gradient, Stream stream) {
  const int64_t chunks = (strip.columns + kThreads - 1) / kThreads;
  if (strip.rows * chunks == 0) return nullptr;
  info_nce_gradient_kernel<A, T><<<unsigned(strip.rows * chunks), kThreads, 0, stream>>>(
      strip, rows, columns, gradient, chunks);
  return launch_error();
}

template <class A, class T>
const char* launch_pairwise_sigmoid(const PairStrip<A>& strip, const PairRowSums<A>& rows,
                                    T* gradient, Stream stream) {
  if (strip.rows == 0) return nullptr;
  pairwise_sigmoid_kernel<A, T>
      <<<unsigned(strip.rows), kThreads, 0, stream>>>(strip, rows, gradient);
  return launch_error();
}

#define PLACKET_INSTANTIATE(A)                                                             \
  template const char* launch_info_nce_rows(const PairStrip<A>&, const PairStatistics<A>&, \
                                            Stream);                                       \
  template const char* launch_info_nce_columns(const PairStrip<A>&, const PairColumns<A>&, Stream)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
#undef PLACKET_INSTANTIATE

#define PLACKET_INSTANTIATE(A, T)                                                              \
  template const char* launch_info_nce_gradient(const PairStrip<A>&, const PairWeights<A>&,    \
                                                const PairWeights<A>&, T*, Stream);            \
  template const char* launch_pairwise_sigmoid(const PairStrip<A>&, const PairRowSums<A>&, T*, \
                                               Stream)

PLACKET_INSTANTIATE(float, float);
PLACKET_INSTANTIATE(float, BFloat16);
PLACKET_INSTANTIATE(double, double);
#undef PLACKET_INSTANTIATE

}  // namespace placket
