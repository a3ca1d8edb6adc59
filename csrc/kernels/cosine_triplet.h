#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace placket {

// Rows are contiguous [N, D]; see ops/cosine_triplet.h for the formula.
template <class T>
struct CosineTriplet {
  const T* anchor;
  const T* positive;
  const T* negative;
  int64_t rows;
  int64_t dims;
  double margin;
};

template <class T>
void cosine_triplet_cpu(const CosineTriplet<T>& in, T* hinge);
template <class T>
void cosine_triplet_backward_cpu(const CosineTriplet<T>& in, const T* grad, T* grad_anchor,
                                 T* grad_positive, T* grad_negative);

template <class T>
const char* launch_cosine_triplet(const CosineTriplet<T>& in, T* hinge, Stream stream);
template <class T>
const char* launch_cosine_triplet_backward(const CosineTriplet<T>& in, const T* grad,
                                           T* grad_anchor, T* grad_positive, T* grad_negative,
                                           Stream stream);

}  // namespace placket
