#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace placket {

// A function of rows [N, ...] and weights that treats every row by itself.
using RowFunction = std::function<at::Tensor(const at::Tensor&, at::TensorList)>;

// call(rows, weights), of at most `part` rows at a time, the graph of one part kept at a time: the
// backward pass computes every part again, so that memory for `part` rows is enough. `rows` get no
// gradient. Random numbers inside would differ between the passes.
at::Tensor recomputed(const RowFunction& call, const at::Tensor& rows,
                      const std::vector<at::Tensor>& weights, int64_t part);

}  // namespace placket
