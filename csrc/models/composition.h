#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "models/tensor_spec.h"

namespace placket {

// A composition turns the features of an image and of a text that says what shall differ into one
// query, a direction in the space of the images to be found. Shapes: N queries, D dimensions of the
// space that both features lie in, P and L further tokens of image and text. It is described by one
// string, "name[,key=value...]":
//
//   agcn      AGCN, a reconstruction: layers=2, heads=8, hidden=2048, dropout=0.1; alone reads the
//             tokens
//   tirg      TIRG (Vo et al., CVPR 2019)
//   combiner  CLIP4Cir's Combiner (Baldrati et al., CVPR workshops 2022): projection=0 (4 D),
//             hidden=0 (twice the projection), dropout=0.5
//   sum       the sum of both rows, without weights, as are the last two
//   image     the image's row alone
//   text      the text's row alone
//
// The equations are in the file of each. An unknown name or key is an error that lists the known
// ones. Features and tokens enter with a root mean square of 1, whatever their length was: the
// scale that the layers' initial weights are made for. A row of zeros stays one.
struct CompositionInput {
  at::Tensor image;         // [N, D]
  at::Tensor text;          // [N, D]
  at::Tensor image_tokens;  // [N, P, D], or undefined: the image's row is its only token
  at::Tensor text_tokens;   // [N, L, D], or undefined: the text's row is its only token
  at::Tensor text_mask;     // [N, L] bool, true where a token is; undefined: everywhere. Tokens
                            // elsewhere must be finite and have no influence.
};

struct CompositionOutput {
  at::Tensor query;  // [N, D] unit rows
  // Every method's query has the direction of image part + text part (+ what it makes of both
  // together, in the Combiner). image_share = |image part| / (|image part| + |text part|), [N] from
  // 0 to 1, and 0.5 where both are 0; the text's share is the rest. image: 1, text: 0, sum of two
  // rows: 0.5; the others' files name the parts. It has no gradient.
  at::Tensor image_share;
};

// Throws ValueError where D does not fit the description.
TensorSpecs composition_spec(const std::string& composition, int64_t dims);

// Registered as placket::compose(Tensor image, Tensor text, Tensor? image_tokens, Tensor?
// text_tokens, Tensor? text_mask, Tensor(a!)[] weights, str composition, bool training) -> (Tensor
// query, Tensor image_share), a composite operator: it decomposes when traced.
CompositionOutput compose(const CompositionInput& input,
                          at::TensorList weights,  // in the order of composition_spec; TIRG's
                                                   // running statistics change in place in training
                          const std::string& composition, bool training);

}  // namespace placket
