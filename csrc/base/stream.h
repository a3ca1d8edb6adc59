#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "base/host_device.h"

namespace placket {

// torch's current stream on the tensor's device, asked for without torch's CUDA headers, which a
// CPU build of torch has only in part.
inline Stream current_stream(const at::Tensor& tensor) {
  const c10::impl::VirtualGuardImpl guard(tensor.device().type());
  return static_cast<Stream>(guard.getStream(tensor.device()).native_handle());
}

// Launchers return nullptr, or the CUDA runtime's text for what went wrong.
inline void check_launch(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, ": ", error);
}

}  // namespace placket
