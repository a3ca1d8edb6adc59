#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// Embeddings at unit length, float32 at least; a zero row stays zero.
at::Tensor unit_rows(const at::Tensor& rows);  // [..., E]

// Supervised contrastive loss with the sum over positives outside the logarithm (Khosla et al.,
// "Supervised Contrastive Learning", NeurIPS 2020, L_out) among rows of one group:
//
//   mean over i with P(i) not empty of  -1/|P(i)| sum_{p in P(i)} log( e^{z_i z_p / t} / sum_{j in
//   G(i)} e^{z_i z_j / t} )
//
// G(i): other rows of i's group with a label; P(i): those of G(i) with i's label. Rows are
// normalised inside; rows with label -1 take no part; 0 when no row has a positive. float32 inside;
// no host synchronisation.
at::Tensor supervised_contrastive(const at::Tensor& embeddings,  // [V, E]
                                  const at::Tensor& groups,      // [V] int64
                                  const at::Tensor& labels,      // [V] int64, -1 = none
                                  double temperature);

// Cross-entropy of scaled cosines to class centres, within the attribute (as cosine softmax heads,
// e.g. Wang et al., "NormFace", ACM MM 2017):
//
//   mean over rows with a label of  -log softmax_c( scale cos(z_i, centre_c) )[y_i],  c in classes
//   of i's attribute
//
// 0 when no row has a label. float32 inside; no host synchronisation.
at::Tensor centre_cross_entropy(const at::Tensor& embeddings,  // [V, E]
                                const at::Tensor& centres,     // [classes of all attributes, E]
                                const at::Tensor& owners,      // [classes] int64: attribute of each
                                const at::Tensor& attributes,  // [V] int64
                                const at::Tensor& classes,  // [V] int64 row of centres, -1 = none
                                double scale);

}  // namespace placket
