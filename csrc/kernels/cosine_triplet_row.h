#pragma once

#include <cmath>

#include "base/bfloat16.h"
#include "base/host_device.h"

namespace placket {

// Below this a row has no direction; it is the eps of torch.nn.functional.normalize.
constexpr double kNormFloor = 1e-12;

// The five sums a triplet needs, and what follows from them.
template <class A>
struct TripletRow {
  A aa = 0, pp = 0, nn = 0, ap = 0, an = 0;

  template <class T>
  PLACKET_HOST_DEVICE void add(T anchor, T positive, T negative) {
    const A a = A(anchor), p = A(positive), n = A(negative);
    aa += a * a;
    pp += p * p;
    nn += n * n;
    ap += a * p;
    an += a * n;
  }

  PLACKET_HOST_DEVICE static A inverse_norm(A square) {
    const A norm = sqrt(square);
    return A(1) / (norm > A(kNormFloor) ? norm : A(kNormFloor));
  }

  PLACKET_HOST_DEVICE A hinge(A margin) const {
    const A ia = inverse_norm(aa), ip = inverse_norm(pp), in = inverse_norm(nn);
    const A value = margin - ap * ia * ip + an * ia * in;
    // Written so that NaN passes through instead of becoming 0.
    return value < A(0) ? A(0) : value;
  }
};

// d hinge / d row = own * row + sum of other * row', the three rows' coefficients in one place.
template <class A>
struct TripletGradient {
  A a_a, a_p, a_n;  // gradient of the anchor in terms of anchor, positive, negative
  A p_p, p_a;
  A n_n, n_a;

  PLACKET_HOST_DEVICE TripletGradient(const TripletRow<A>& s, A margin, A grad) {
    // A hinge at exactly 0 has gradient 0, as torch.relu; a NaN hinge gives NaN gradients.
    const A g = s.hinge(margin) == A(0) ? A(0) : grad;
    const A ia = s.inverse_norm(s.aa), ip = s.inverse_norm(s.pp), in = s.inverse_norm(s.nn);
    const A ap = s.ap * ia * ip, an = s.an * ia * in;
    // A row under the floor is divided by a constant: its own direction has no derivative term.
    const A ka = s.aa > A(kNormFloor) * A(kNormFloor) ? ia * ia : A(0);
    const A kp = s.pp > A(kNormFloor) * A(kNormFloor) ? ip * ip : A(0);
    const A kn = s.nn > A(kNormFloor) * A(kNormFloor) ? in * in : A(0);
    a_a = g * (ap - an) * ka;
    a_p = -g * ia * ip;
    a_n = g * ia * in;
    p_p = g * ap * kp;
    p_a = -g * ia * ip;
    n_n = -g * an * kn;
    n_a = g * ia * in;
  }
};

}  // namespace placket
