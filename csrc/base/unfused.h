#pragma once

#include "base/host_device.h"

namespace placket {

// Products and sums that are rounded one by one on both sides: nvcc joins a * b + c into one
// rounding unless told otherwise, and the result must not depend on the device.
PLACKET_HOST_DEVICE inline float multiply_unfused(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

PLACKET_HOST_DEVICE inline double multiply_unfused(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

PLACKET_HOST_DEVICE inline float add_unfused(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

}  // namespace placket
