#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include "base/bfloat16.h"

namespace placket {

static_assert(sizeof(BFloat16) == sizeof(c10::BFloat16), "kernels read torch's bfloat16 in place");

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>{}) with the kernels' type for the dtype; anything else is an error that names
// the operator.
template <class F>
void dispatch_floating(const char* op, at::ScalarType dtype, const F& f) {
  switch (dtype) {
    case at::kFloat:
      return f(TypeTag<float>{});
    case at::kDouble:
      return f(TypeTag<double>{});
    case at::kBFloat16:
      return f(TypeTag<BFloat16>{});
    default:
      TORCH_CHECK_TYPE(false, op, ": dtype must be float32, bfloat16 or float64, got ", dtype);
  }
}

template <class T>
const T* data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace placket
