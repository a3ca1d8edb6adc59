// Where a channel's positions are contiguous a warp takes a channel: its lanes stride over the
// positions and the sums meet by shuffles; the row stays in the first-level cache from one
// attribute to the next. In channels_last memory a thread takes a channel, so that neighbouring
// threads read neighbouring addresses, and keeps kBlock attributes' sums in registers. Nothing is
// shared between warps, so results do not depend on the grid.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/attention_pool.h"

namespace placket {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 128;
constexpr int kBlock = 8;

template <class T>
__global__ void pool_channels_kernel(AttentionPool<T> pass) {
  using A = accumulate_t<T>;
  const int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (item >= pass.images * pass.channels) return;
  const int64_t image = item / pass.channels, c = item % pass.channels;
  const T* values = pass.values + item * pass.positions;
  const A* weights = pass.weights + image * pass.attributes * pass.positions;
  for (int64_t a = 0; a < pass.attributes; ++a, weights += pass.positions) {
    A sum = 0;
    for (int64_t p = threadIdx.x; p < pass.positions; p += kWarpSize) {
      sum += weights[p] * A(values[p]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
      pass.pooled[(image * pass.attributes + a) * pass.channels + c] = T(sum);
    }
  }
  if (pass.sums == nullptr) return;
  A sum = 0;
  for (int64_t p = threadIdx.x; p < pass.positions; p += kWarpSize) sum += A(values[p]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) pass.sums[item] = sum;
}

template <class T>
__global__ void pool_positions_kernel(AttentionPool<T> pass, int64_t blocks_per_image) {
  using A = accumulate_t<T>;
  const int64_t image = blockIdx.x / blocks_per_image;
  const int64_t c = blockIdx.x % blocks_per_image * kThreads + threadIdx.x;
  if (c >= pass.channels) return;
  const T* values = pass.values + image * pass.positions * pass.channels + c;
  const A* weights = pass.weights + image * pass.attributes * pass.positions;
  A total = 0;
  for (int64_t first = 0; first == 0 || first < pass.attributes; first += kBlock) {
    const int count = int(min(int64_t(kBlock), pass.attributes - first));
    A sums[kBlock] = {};
    for (int64_t p = 0; p < pass.positions; ++p) {
      const A v = A(values[p * pass.channels]);
      if (first == 0) total += v;
#pragma unroll
      for (int a = 0; a < kBlock; ++a) {
        if (a < count) sums[a] += weights[(first + a) * pass.positions + p] * v;
      }
    }
#pragma unroll
    for (int a = 0; a < kBlock; ++a) {
      if (a < count) {
        pass.pooled[(image * pass.attributes + first + a) * pass.channels + c] = T(sums[a]);
      }
    }
  }
  if (pass.sums != nullptr) pass.sums[image * pass.channels + c] = total;
}

}  // namespace

template <class T>
const char* launch_attention_pool(const AttentionPool<T>& pass, Stream stream) {
  const int64_t items = pass.images * pass.channels;
  if (items == 0) return nullptr;
  if (pass.channels_last) {
    const int64_t blocks = (pass.channels + kThreads - 1) / kThreads;
    pool_positions_kernel<T><<<unsigned(pass.images * blocks), kThreads, 0, stream>>>(pass, blocks);
  } else {
    pool_channels_kernel<T>
        <<<unsigned((items + kWarps - 1) / kWarps), dim3(kWarpSize, kWarps), 0, stream>>>(pass);
  }
  return launch_error();
}

template const char* launch_attention_pool(const AttentionPool<float>&, Stream);
template const char* launch_attention_pool(const AttentionPool<double>&, Stream);
template const char* launch_attention_pool(const AttentionPool<BFloat16>&, Stream);

}  // namespace placket
