#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace placket {

// What AGCN makes of its two sides (systems.md 7.4, step 4, a reconstruction): a gate for each
// dimension mixes image and text, and a selection for each row adds the features from before.
//
//   image part = g image + (1 - l) image_clip,    g = sigmoid(gate_logits)
//   text part  = (1 - g) text + l text_clip,      l = sigmoid(selection_logits)
//   x = image part + text part,    query = x / max(|x|, 1e-12)
//   image_share = |image part| / (|image part| + |text part|), 0.5 where both are 0
//
// Six tensors are read once and none of the intermediate ones is stored; the matrix products that
// give the logits stay outside. float32, bfloat16 (computed in float32) or float64, all of one
// dtype. NaN passes through to its row. The query is differentiable once in all six inputs, the
// share in none; deterministic. Under autocast it runs in float32.
std::tuple<at::Tensor, at::Tensor>                // query [N, D], image_share [N]
gated_fusion(const at::Tensor& gate_logits,       // [N, D]
             const at::Tensor& selection_logits,  // [N]
             const at::Tensor& image,             // [N, D]
             const at::Tensor& text,              // [N, D]
             const at::Tensor& image_clip,        // [N, D]
             const at::Tensor& text_clip);        // [N, D]

}  // namespace placket
