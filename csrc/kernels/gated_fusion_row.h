#pragma once

#include <cmath>

#include "base/host_device.h"

// What CPU and CUDA kernels of gated_fusion compute alike of a row x = image part + text part.
namespace placket {

// 1 / (1 + exp(-x)), given exp(-|x|).
template <class A>
PLACKET_HOST_DEVICE inline A sigmoid_from(A x, A exp_of_minus_magnitude) {
  return (x < A(0) ? exp_of_minus_magnitude : A(1)) / (A(1) + exp_of_minus_magnitude);
}

template <class A>
PLACKET_HOST_DEVICE inline A image_part(A gate, A selection, A image, A image_clip) {
  return gate * image + (A(1) - selection) * image_clip;
}

template <class A>
PLACKET_HOST_DEVICE inline A text_part(A gate, A selection, A text, A text_clip) {
  return (A(1) - gate) * text + selection * text_clip;
}

// Squared lengths of x and of its parts.
template <class A>
struct FusionSums {
  A square = 0, image = 0, text = 0;

  PLACKET_HOST_DEVICE void add(A image_value, A text_value) {
    const A x = image_value + text_value;
    square += x * x;
    image += image_value * image_value;
    text += text_value * text_value;
  }

  PLACKET_HOST_DEVICE A image_share() const {
    const A both = sqrt(image) + sqrt(text);
    return both == A(0) ? A(0.5) : sqrt(image) / both;
  }
};

// Below this a row has no direction; it is the eps of torch.nn.functional.normalize.
constexpr double kFusionNormFloor = 1e-12;

template <class A>
PLACKET_HOST_DEVICE inline A inverse_length(A square) {
  const A length = sqrt(square);
  // Written so that NaN passes through.
  return A(1) / (length <= A(kFusionNormFloor) ? A(kFusionNormFloor) : length);
}

// Sums over a row for its gradient; between = text_clip - image_clip.
template <class A>
struct FusionGradientSums {
  A square = 0;        // x . x
  A along = 0;         // x . grad
  A between_grad = 0;  // between . grad
  A between_x = 0;     // between . x

  PLACKET_HOST_DEVICE void add(A x, A grad, A between) {
    square += x * x;
    along += x * grad;
    between_grad += between * grad;
    between_x += between * x;
  }
};

// d loss / d x = inverse * (grad - radial * x): normalising takes out what points along x.
template <class A>
struct FusionGradient {
  A inverse, radial;
  A selection_logit;  // gradient of it

  PLACKET_HOST_DEVICE FusionGradient(const FusionGradientSums<A>& sums, A selection) {
    inverse = inverse_length(sums.square);
    // A row under the floor is divided by a constant: nothing is taken out.
    const bool below = sqrt(sums.square) <= A(kFusionNormFloor);
    radial = below ? A(0) : sums.along * inverse * inverse;
    selection_logit =
        selection * (A(1) - selection) * inverse * (sums.between_grad - radial * sums.between_x);
  }

  PLACKET_HOST_DEVICE A of(A x, A grad) const { return inverse * (grad - radial * x); }
};

}  // namespace placket
