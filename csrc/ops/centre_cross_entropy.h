#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// Cross-entropy of scaled cosines to class centres, within the attribute (as cosine softmax heads,
// e.g. Wang et al., "NormFace", ACM MM 2017):
//
//   mean over rows with a class of  -log softmax_c( scale cos(z_i, centre_c) )[y_i],  c in classes
//   of i's attribute
//
// With sets of classes the mean of that over a row's classes of its attribute. Rows and centres are
// normalised inside. 0, with a gradient of 0, when no row has a class. Computed in float32, or
// float64 for float64; no host synchronisation. A composite operator.
at::Tensor centre_cross_entropy(const at::Tensor& embeddings,  // [B, D]
                                const at::Tensor& centres,     // [C of all attributes, D]
                                const at::Tensor& owners,      // [C] int64: attribute of each
                                const at::Tensor& attributes,  // [B] int64
                                const at::Tensor& classes,  // [B] int64 row of centres, -1 = none,
                                                            // or [B, C] bool
                                double scale);              // returns []

}  // namespace placket
