#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// Losses against class centres that ops/class_centres.h keeps online (MODC, ECCV 2022, as
// reconstructed). For row i, of attribute a_i:
//
//   p_i(c) = e^{z_i centre_c / t} / sum over c' in S(a_i) of e^{z_i centre_c' / t},  c in S(a_i)
//
// S(a): the classes of a that have been seen, whose centre is not zero. Rows z are normalised
// inside; centres are unit rows or zero and get no gradient. A row counts only where S(a_i) has two
// classes or more, and each loss is a mean over the rows that count, 0 with a gradient of 0 where
// none does. Computed in float32, or float64 for float64; no host synchronisation. Composite
// operators placket::prototype_cross_entropy and so on.

struct ClassCentres {
  at::Tensor centres;  // [M, E]
  at::Tensor owners;   // [M] int64, the attribute of each
};

// mean of -log p_i(y_i) over rows with a class y_i in S(a_i)
at::Tensor prototype_cross_entropy(const at::Tensor& embeddings,  // [V, E]
                                   const ClassCentres& known,
                                   const at::Tensor& attributes,  // [V] int64
                                   const at::Tensor& classes,     // [V] int64 below M, -1 = none
                                   double temperature);

// mean of max(0, margin - z_i centre_{y_i} + max over c in S(a_i) other than y_i of z_i centre_c)
// over the same rows
at::Tensor centre_triplet(const at::Tensor& embeddings,  // [V, E]
                          const ClassCentres& known,
                          const at::Tensor& attributes,  // [V] int64
                          const at::Tensor& classes,     // [V] int64 below M, -1 = none
                          double margin);

// mean of -log max_c p_i(c) over rows without a class whose max_c p_i(c) exceeds `confidence`: the
// cross-entropy against the nearest centre's class
at::Tensor pseudo_label_cross_entropy(const at::Tensor& embeddings,  // [V, E]
                                      const ClassCentres& known,
                                      const at::Tensor& attributes,  // [V] int64
                                      const at::Tensor& classes,     // [V] int64, -1 = none
                                      double temperature, double confidence);

// mean of -1/2 sum_c (p_i(c) log q_i(c) + q_i(c) log p_i(c)) over all rows, p_i of the first and
// q_i of the second view of an image under an attribute; the factor outside of the logarithm is a
// target without a gradient (the swapped prediction of SwAV, NeurIPS 2020, without its queue and
// without its balanced codes: the labels of other rows keep the centres apart)
at::Tensor assignment_consistency(const at::Tensor& first,   // [V, E]
                                  const at::Tensor& second,  // [V, E]
                                  const ClassCentres& known,
                                  const at::Tensor& attributes,  // [V] int64
                                  double temperature);

}  // namespace placket
