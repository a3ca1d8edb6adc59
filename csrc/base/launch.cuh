#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace placket {

// To be returned by every launcher right after the launch: nullptr, or what went wrong.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

constexpr int kWarpSize = 32;

// Sum over the 32 lanes; every lane gets it.
template <class T>
__device__ inline T warp_sum(T value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

template <class T>
__device__ inline T warp_max(T value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// Sum over a block of kWarps whole warps; every thread gets it.
template <int kWarps, class T>
__device__ T block_sum(T value) {
  __shared__ T warps[kWarps];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = 0;
  for (int i = 0; i < kWarps; ++i) value += warps[i];
  return value;
}

}  // namespace placket
