#pragma once

#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <vector>

namespace placket {

// Below this guard a call lands on the operator itself, not on its Autocast kernel again.
class BelowAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard_{
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA})};
};

// The rule for losses and softmaxes: float32, and float64 stays as it is.
inline at::Tensor at_least_float32(const at::Tensor& tensor) {
  const bool low = tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
  return low ? tensor.to(at::kFloat) : tensor;
}
inline std::vector<at::Tensor> at_least_float32(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(at_least_float32(tensor));
  return result;
}

}  // namespace placket
