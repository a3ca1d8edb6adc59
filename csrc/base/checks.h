#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

// Checks of operator arguments, one helper for each kind so that the wording is the same
// everywhere:
// "<op>: <argument> must <condition>, got <value>".
namespace placket {

// `pattern` is the shape as the contract writes it, "[B, A, P]"; -1 in `shape` stands for any size.
inline void check_shape(const char* op, const char* name, const at::Tensor& tensor,
                        std::initializer_list<int64_t> shape, const char* pattern) {
  bool matches = tensor.dim() == int64_t(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) {
    if (!matches) break;
    matches = size < 0 || tensor.size(dim) == size;
    ++dim;
  }
  TORCH_CHECK_VALUE(matches, op, ": ", name, " must have shape ", pattern, ", got ",
                    tensor.sizes());
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& tensor,
                              const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", name, " must be on ",
                    other.device(), " like ", other_name, ", got ", tensor.device());
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor,
                        at::ScalarType dtype) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
}

inline void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const at::ScalarType t = tensor.scalar_type();
  TORCH_CHECK_TYPE(t == at::kFloat || t == at::kBFloat16 || t == at::kDouble, op, ": ", name,
                   " must be float32, bfloat16 or float64, got ", t);
}

inline void check_same_dtype(const char* op, const char* name, const at::Tensor& tensor,
                             const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " must be ",
                   other.scalar_type(), " like ", other_name, ", got ", tensor.scalar_type());
}

}  // namespace placket
