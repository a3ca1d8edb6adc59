// The map is rows of channels. A block of 32 x 8 threads sums 32 channels over one chunk of rows:
// neighbouring threads read neighbouring channels, the eight partial sums meet in shared memory,
// and one number a channel goes to the workspace. A second kernel joins the chunks in a fixed
// order, so the result does not depend on scheduling; a third writes the map in one pass. Sums of
// chunks are joined in double.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/batch_norm_act.h"

namespace placket {
namespace {

constexpr int kLanes = 32;
constexpr int kRowsAtOnce = 8;
constexpr int kThreads = 256;

// Calls f(row, channel index) for the block's share and leaves the two sums of each channel in the
// workspace.
template <class A, class F>
__device__ void chunk_sums(const BatchNormShape& shape, A* workspace, const F& f) {
  __shared__ A sums[2][kRowsAtOnce][kLanes];
  const int64_t c = int64_t(blockIdx.x) * kLanes + threadIdx.x;
  const int64_t chunks = shape.chunks();
  const int64_t total = shape.groups * chunks;
  // Chunks are strided over the grid's second dimension, which has a limit of 65,535.
  for (int64_t item = blockIdx.y; item < total; item += gridDim.y) {
    const int64_t group = item / chunks;
    const int64_t first = item % chunks * shape.kChunk;
    const int64_t last = min(first + shape.kChunk, shape.rows);
    A sum = 0, second = 0;
    if (c < shape.channels) {
      for (int64_t row = first + threadIdx.y; row < last; row += kRowsAtOnce) {
        f(group, (group * shape.rows + row) * shape.channels + c, c, sum, second);
      }
    }
    sums[0][threadIdx.y][threadIdx.x] = sum;
    sums[1][threadIdx.y][threadIdx.x] = second;
    __syncthreads();
    if (threadIdx.y < 2 && c < shape.channels) {
      A joined = 0;
      for (int i = 0; i < kRowsAtOnce; ++i) joined += sums[threadIdx.y][i][threadIdx.x];
      workspace[(int64_t(threadIdx.y) * total + item) * shape.channels + c] = joined;
    }
    __syncthreads();
  }
}

template <class A>
__device__ void join_chunks(const BatchNormShape& shape, const A* workspace, int64_t group,
                            int64_t c, double& sum, double& second) {
  const int64_t chunks = shape.chunks(), total = shape.groups * chunks;
  sum = second = 0;
  for (int64_t item = group * chunks; item < (group + 1) * chunks; ++item) {
    sum += workspace[item * shape.channels + c];
    second += workspace[(total + item) * shape.channels + c];
  }
}

template <class T>
__global__ void moments_kernel(BatchNormForward<T> pass) {
  using A = accumulate_t<T>;
  chunk_sums<A>(pass.shape, pass.workspace,
                [&](int64_t group, int64_t at, int64_t c, A& sum, A& square) {
                  const A shift = A(pass.input[group * pass.shape.rows * pass.shape.channels + c]);
                  const A v = A(pass.input[at]) - shift;
                  sum += v;
                  square += v * v;
                });
}

template <class T>
__global__ void statistics_kernel(BatchNormForward<T> pass) {
  using A = accumulate_t<T>;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= pass.shape.groups * pass.shape.channels) return;
  const int64_t group = i / pass.shape.channels, c = i % pass.shape.channels;
  double sum, square;
  join_chunks(pass.shape, pass.workspace, group, c, sum, square);
  const double shift = double(A(pass.input[group * pass.shape.rows * pass.shape.channels + c]));
  const double delta = sum / pass.shape.rows;
  const double variance = square / pass.shape.rows - delta * delta;
  pass.mean[i] = A(shift + delta);
  // Rounding may leave a tiny negative number; NaN stays NaN.
  pass.variance[i] = A(variance < 0 ? 0.0 : variance);
}

template <class T>
__global__ void apply_kernel(BatchNormForward<T> pass) {
  using A = accumulate_t<T>;
  const int64_t count = pass.shape.groups * pass.shape.rows * pass.shape.channels;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count;
       at += int64_t(gridDim.x) * blockDim.x) {
    const int64_t c = at % pass.shape.channels;
    const int64_t i = at / pass.shape.channels / pass.shape.rows * pass.shape.channels + c;
    const A scale = A(double(pass.weight[c]) / sqrt(double(pass.variance[i]) + pass.eps));
    A v = (A(pass.input[at]) - pass.mean[i]) * scale + pass.bias[c];
    if (pass.residual != nullptr) v += A(pass.residual[at]);
    pass.output[at] = T(pass.relu && v < A(0) ? A(0) : v);
  }
}

template <class T>
__device__ accumulate_t<T> masked_grad(const BatchNormBackward<T>& pass, int64_t at) {
  using A = accumulate_t<T>;
  return pass.output == nullptr || A(pass.output[at]) > A(0) ? A(pass.grad[at]) : A(0);
}

template <class T>
__global__ void gradient_sums_kernel(BatchNormBackward<T> pass) {
  using A = accumulate_t<T>;
  chunk_sums<A>(pass.shape, pass.workspace,
                [&](int64_t group, int64_t at, int64_t c, A& sum, A& product) {
                  const A g = masked_grad(pass, at);
                  sum += g;
                  product += g * (A(pass.input[at]) - pass.mean[group * pass.shape.channels + c]);
                });
}

template <class T>
__global__ void gradient_statistics_kernel(BatchNormBackward<T> pass) {
  using A = accumulate_t<T>;
  const int64_t statistics = pass.shape.groups * pass.shape.channels;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= statistics) return;
  double sum, product;
  join_chunks(pass.shape, pass.workspace, i / pass.shape.channels, i % pass.shape.channels, sum,
              product);
  pass.sums[i] = A(sum);
  pass.sums[statistics + i] = A(product / sqrt(double(pass.variance[i]) + pass.eps));
}

template <class T>
__global__ void gradient_apply_kernel(BatchNormBackward<T> pass) {
  using A = accumulate_t<T>;
  const int64_t statistics = pass.shape.groups * pass.shape.channels;
  const int64_t count = statistics * pass.shape.rows;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count;
       at += int64_t(gridDim.x) * blockDim.x) {
    const int64_t c = at % pass.shape.channels;
    const int64_t i = at / pass.shape.channels / pass.shape.rows * pass.shape.channels + c;
    const A inverse = A(1.0 / sqrt(double(pass.variance[i]) + pass.eps));
    const A normalized = (A(pass.input[at]) - pass.mean[i]) * inverse;
    const A g = masked_grad(pass, at);
    const A rows = A(pass.shape.rows);
    pass.grad_input[at] =
        T(pass.weight[c] * inverse *
          (g - pass.sums[i] / rows - normalized * pass.sums[statistics + i] / rows));
    if (pass.grad_residual != nullptr) pass.grad_residual[at] = T(g);
  }
}

dim3 chunk_grid(const BatchNormShape& shape) {
  return dim3(unsigned((shape.channels + kLanes - 1) / kLanes),
              unsigned(std::min<int64_t>(shape.groups * shape.chunks(), 65535)));
}

unsigned blocks(int64_t items) {
  return unsigned(std::min<int64_t>((items + kThreads - 1) / kThreads, 1 << 20));
}

}  // namespace

template <class T>
const char* launch_batch_norm_act(const BatchNormForward<T>& pass, Stream stream) {
  const int64_t statistics = pass.shape.groups * pass.shape.channels;
  const int64_t count = statistics * pass.shape.rows;
  if (count == 0) return nullptr;
  moments_kernel<T><<<chunk_grid(pass.shape), dim3(kLanes, kRowsAtOnce), 0, stream>>>(pass);
  statistics_kernel<T><<<blocks(statistics), kThreads, 0, stream>>>(pass);
  apply_kernel<T><<<blocks(count), kThreads, 0, stream>>>(pass);
  return launch_error();
}

template <class T>
const char* launch_batch_norm_act_backward(const BatchNormBackward<T>& pass, Stream stream) {
  const int64_t statistics = pass.shape.groups * pass.shape.channels;
  const int64_t count = statistics * pass.shape.rows;
  if (count == 0) return nullptr;
  gradient_sums_kernel<T><<<chunk_grid(pass.shape), dim3(kLanes, kRowsAtOnce), 0, stream>>>(pass);
  gradient_statistics_kernel<T><<<blocks(statistics), kThreads, 0, stream>>>(pass);
  gradient_apply_kernel<T><<<blocks(count), kThreads, 0, stream>>>(pass);
  return launch_error();
}

#define PLACKET_INSTANTIATE(T)                                                    \
  template const char* launch_batch_norm_act(const BatchNormForward<T>&, Stream); \
  template const char* launch_batch_norm_act_backward(const BatchNormBackward<T>&, Stream)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

}  // namespace placket
