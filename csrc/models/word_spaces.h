#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// Spaces of A attributes whose values are told by words, and a last one of the image itself. Of an
// image x and the words w_v of the values of attribute a,
//
//   p_v = softmax over v of a of scale * (x . w_v),   row a = (sqrt(p_v))_v, then zeros,
//
// so that the cosine of two images in the space, sum_v sqrt(p_v q_v) (Bhattacharyya's coefficient),
// says how far the two are taken for garments of one value. Row A is x at unit length. All rows are
// of unit length. x is the mean of unit embeddings of an image's views, so that x . w is the mean
// of their cosines; an attribute has at most D values.
//
// Registered as placket::word_spaces, a composite operator.
at::Tensor word_spaces(const at::Tensor& images,  // [N, D]
                       const at::Tensor& words,   // [M, D], M values of all attributes in order
                       at::IntArrayRef values,    // [A] number of values of each attribute
                       const at::Tensor& scale);  // scalar
// -> [N, A + 1, D]

}  // namespace placket
