// As much of CUDA as csrc/kernels uses, on the CPU and without a GPU: the kernels' own source is
// compiled as C++, launches made calls by launches.py. The threads of a block take turns on one
// processor and change where CUDA makes them wait for each other, so that threads that wait for
// each other in vain are found, and sanitizers see every access. What they don't see: races between
// barriers, and rounding that differs on a GPU.
#pragma once

#include <math.h>

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct CUstream_st;
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}  // NOLINT: as CUDA's
};

// Of the thread whose turn it is.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace emulated_cuda {

// Runs every block, and returns when all are done.
void launch(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st* stream,
            const std::function<void()>& thread);

// Memory of the block, filled with what no kernel should read.
void* dynamic_shared();

void wait_for_block();
bool any_of_block(bool value);

// Shows a value of at most 16 bytes to the warp, and waits until all its lanes have shown theirs;
// `shown` has them until the next time, and null for a lane that had ended before.
void show(const void* value, size_t size);
const void* shown(int lane);
int own_lane();

template <class T>
T exchange(T value, int lane) {
  show(&value, sizeof value);
  // Of a lane that is not there CUDA promises nothing.
  if (const void* other = shown(lane)) std::memcpy(&value, other, sizeof value);
  return value;
}

}  // namespace emulated_cuda

inline void __syncthreads() { emulated_cuda::wait_for_block(); }
inline int __syncthreads_or(int value) { return emulated_cuda::any_of_block(value != 0); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulated_cuda::exchange(value, emulated_cuda::own_lane() ^ lanes);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int lanes) {
  return emulated_cuda::exchange(value, emulated_cuda::own_lane() + lanes);
}
inline unsigned __ballot_sync(unsigned, int value) {
  const bool own = value != 0;
  emulated_cuda::show(&own, sizeof own);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    const auto* theirs = static_cast<const bool*>(emulated_cuda::shown(lane));
    ballot |= unsigned(theirs != nullptr && *theirs) << lane;
  }
  return ballot;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}
