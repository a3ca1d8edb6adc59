#pragma once

#include <ATen/core/Tensor.h>

namespace placket {

// The class-level losses of M3-Net (CVPR 2023), whose forms its poster gives. M classes are the
// values of A attributes in order; phi_m is an image's representation by class m. float32 at least;
// no host synchronisation; 0 with a zero gradient where a batch has nothing to learn from.
// Registered as placket::class_recognition and so on, composite operators with the members of
// ClassViews one by one.

// L_M: mean over images with a label of the sum over their labelled attributes of
//
//   (1/M_n) sum_{m of n}  -[ w_p y_m log x_m + (1 - y_m) log(1 - x_m) ],  x_m = sigmoid(logit_m)
//
// The poster prints the minus before the first term only.
at::Tensor class_recognition(const at::Tensor& logits,    // [N, M]
                             const at::Tensor& carried,   // [N, M] bool: y
                             const at::Tensor& labelled,  // [N, A] bool
                             const at::Tensor& owners,    // [M] int64: attribute of each class
                             double positive_weight);     // w_p

// For images of one value an attribute: the same mean of -log softmax_{m of n}(logit_m)[y_n].
at::Tensor class_cross_entropy(const at::Tensor& logits,   // [N, M]
                               const at::Tensor& classes,  // [N, A] int64: class, -1 = no label
                               const at::Tensor& owners);  // [M] int64

// N images in the spaces of the classes of V anchors, each an image under the class it was drawn
// for. A column without positives and negatives is an anchor without a label.
struct ClassViews {
  at::Tensor embeddings;  // [N, V, F]: phi of image n by the class of anchor v
  at::Tensor anchors;     // [V] int64: which of the images it is
  at::Tensor positives;   // [N, V] bool: images that carry the anchor's class
  at::Tensor negatives;   // [N, V] bool: images that carry other values of its attribute only
};

// phi of the anchors by their own classes, [V, F].
at::Tensor anchors_of(const ClassViews& views);

// L_CI: mean over anchors I of class m, other positives I+ and negatives I- of
//   max(0, margin - cos(phi_m(I), phi_m(I+)) + cos(phi_m(I), phi_m(I-)))
// Memory grows as N N V.
at::Tensor class_instance_triplet(const ClassViews& views, double margin);

// L_CC: the same mean with the centre of m for phi_m(I+); positives are not read.
at::Tensor class_centre_triplet(const ClassViews& views,
                                const at::Tensor& centres,  // [V, F] of the anchors' classes
                                double margin);

}  // namespace placket
