#pragma once

// Marks a function that CPU and CUDA kernels share, so that both compute the same thing by
// construction.
#ifdef __CUDACC__
#define PLACKET_HOST_DEVICE __host__ __device__
#else
#define PLACKET_HOST_DEVICE
#endif

// cudaStream_t without CUDA's headers.
using Stream = struct CUstream_st*;
