#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// E-InfoNCE between the region and patch embeddings of one batch (RPF, SIGIR 2023). With rows
// normalised inside, r_i the regions, p_j the patches, b_k the backgrounds and T the temperature:
//
//   loss = -1/N sum_i log  sum_{j same (attribute, label) as i} exp(r_i.p_j / T)
//                         -------------------------------------------------------------------------
//                         sum_j exp(r_i.p_j / T) + alpha sum_{k same attribute as i} exp(r_i.b_k/T)
//
// As published: the anchors are regions only; a view's own patch is among its positives and its own
// background among its negatives; patches of other attributes are negatives too, backgrounds of
// other attributes are not. Labels may count values of all attributes together or of each attribute
// by itself. Logarithms of sums are taken with the largest term subtracted.
//
// float32, bfloat16 (everything inside in float32) or float64, all three of one dtype; the loss is
// float32, or float64 for float64. Norms are floored at 1e-12 as in torch.nn.functional.normalize.
// A NaN in any row makes the loss NaN. N = 0 gives 0. Differentiable once in region, patch and
// background. Where a gradient is asked for, all three are computed with the loss and kept for
// backward, which scales them; no N x N matrix is kept, only blocks of it are ever there. The bits
// may depend on the number of threads, as those of a matrix product do. Under autocast it runs in
// float32.
at::Tensor region_patch_info_nce(const at::Tensor& region,      // [N, E]
                                 const at::Tensor& patch,       // [N, E]
                                 const at::Tensor& background,  // [N, E]
                                 const at::Tensor& labels,      // [N] int64
                                 const at::Tensor& attributes,  // [N] int64
                                 double temperature,            // above 0
                                 double alpha);                 // at least 0; returns []

}  // namespace placket
