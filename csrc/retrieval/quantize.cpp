#include "retrieval/quantize.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "base/checks.h"

namespace placket {
namespace {

using at::Tensor;

constexpr const char* kName = "quantize";

// Norms are taken in float64, whose roundings and that of the result to float32 this exceeds.
constexpr double kUp = 1 + 0x1p-20;

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& rows, at::ScalarType dtype) {
  check_shape(kName, "rows", rows, {-1, -1}, "[N, D]");
  check_dtype(kName, "rows", rows, at::kFloat);
  TORCH_CHECK_TYPE(dtype == at::kBFloat16 || dtype == at::kChar, kName,
                   ": dtype must be bfloat16 or int8, got ", dtype);
  const c10::OptionalDeviceGuard guard(rows.device());
  const int64_t count = rows.size(0);
  Tensor codes = at::empty(rows.sizes(), rows.options().dtype(dtype));
  Tensor bounds = at::empty({count, 3}, rows.options());
  // Memory beside the results is that of a few blocks.
  const int64_t block =
      std::max<int64_t>((int64_t(1) << 20) / std::max<int64_t>(rows.size(1), 1), 1);
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(begin + block, count);
    const Tensor part = rows.slice(0, begin, end);
    const Tensor wide = part.to(at::kDouble);
    const Tensor norm = at::linalg_vector_norm(wide, 2, 1);
    TORCH_CHECK_VALUE(norm.le(kMostNorm).all().item<bool>(), kName,
                      ": rows must hold numbers and have norms of at most 2^40, got ",
                      std::abs(norm.max().item<double>()));
    Tensor scale = at::ones({end - begin, 1}, rows.options());
    Tensor code;
    if (dtype == at::kChar) {
      // No value is further from 0 than the largest magnitude; a row of zeros keeps scale 1.
      const Tensor largest = at::linalg_vector_norm(part, INFINITY, 1, /*keepdim=*/true).div(127);
      scale = at::where(largest.gt(0), largest, scale);
      code = part.div(scale).round_().clamp_(-127, 127).to(dtype);
    } else {
      code = part.to(dtype);
    }
    const Tensor kept = code.to(at::kDouble).mul_(scale);
    const Tensor residual = at::linalg_vector_norm(wide.sub(kept), 2, 1);
    const Tensor most = at::maximum(norm, at::linalg_vector_norm(kept, 2, 1));
    // The smallest number is added, since what underflows is rounded down.
    const auto up = [](const Tensor& exact) { return exact.mul(kUp).add(0x1p-126); };
    codes.slice(0, begin, end).copy_(code);
    bounds.slice(0, begin, end)
        .copy_(at::stack({scale.squeeze(1).to(at::kDouble), up(residual), up(most)}, 1));
  }
  return {codes, bounds};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def("quantize(Tensor rows, ScalarType dtype) -> (Tensor codes, Tensor bounds)",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) { m.impl("quantize", quantize_rows); }
TORCH_LIBRARY_IMPL(placket, CUDA, m) { m.impl("quantize", quantize_rows); }
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("quantize", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace placket
