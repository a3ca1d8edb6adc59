#include "ops/class_losses.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/autocast.h"
#include "ops/loss_terms.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

namespace {

// Cosine of every image to every anchor in the space of the anchor's class, [N, V].
Tensor similarities(const ClassViews& views) {
  return (unit_rows(views.embeddings) * unit_rows(anchors_of(views))).sum(2);
}

}  // namespace

Tensor class_recognition(const Tensor& logits, const Tensor& carried, const Tensor& labelled,
                         const Tensor& owners, double positive_weight) {
  const Tensor x = at_least_float32(logits);
  const Tensor counts = at::zeros({labelled.size(1)}, x.options())
                            .index_add_(0, owners, at::ones({owners.size(0)}, x.options()));
  const Tensor share = counts.reciprocal().index_select(0, owners);  // 1 / M_n of each class
  const Tensor terms = at::softplus(-x).mul(positive_weight).where(carried, at::softplus(x));
  const Tensor of_image =
      terms.where(labelled.index_select(1, owners), 0).mul(share).sum(1);  // [N]
  return mean_of(of_image, labelled.any(1));
}

Tensor class_cross_entropy(const Tensor& logits, const Tensor& classes, const Tensor& owners) {
  const Tensor attributes = at::arange(classes.size(1), owners.options());
  const Tensor elsewhere = attributes.unsqueeze(1).ne(owners);  // [A, M]
  const Tensor x = at_least_float32(logits);
  const Tensor all = x.unsqueeze(1).masked_fill(elsewhere, kMasked).logsumexp(2);  // [N, A]
  const Tensor labelled = classes.ge(0);
  const Tensor terms = all - x.gather(1, classes.clamp_min(0));
  return mean_of(terms.where(labelled, 0).sum(1), labelled.any(1));
}

Tensor anchors_of(const ClassViews& views) {
  const Tensor columns = at::arange(views.anchors.size(0), views.anchors.options());
  return views.embeddings.index({views.anchors, columns});
}

Tensor class_instance_triplet(const ClassViews& views, double margin) {
  const Tensor cosine = similarities(views);
  const Tensor rows = at::arange(cosine.size(0), views.anchors.options()).unsqueeze(1);
  const Tensor others = views.positives & rows.ne(views.anchors);
  const Tensor hinge = at::relu(margin - cosine.unsqueeze(1) + cosine.unsqueeze(0));
  return mean_of(hinge, others.unsqueeze(1) & views.negatives.unsqueeze(0));
}

Tensor class_centre_triplet(const ClassViews& views, const Tensor& centres, double margin) {
  const Tensor own = (unit_rows(anchors_of(views)) * unit_rows(centres)).sum(1);  // [V]
  return mean_of(at::relu(margin - own + similarities(views)), views.negatives);
}

namespace {

Tensor class_instance_triplet_op(const Tensor& embeddings, const Tensor& anchors,
                                 const Tensor& positives, const Tensor& negatives, double margin) {
  return class_instance_triplet({embeddings, anchors, positives, negatives}, margin);
}

Tensor class_centre_triplet_op(const Tensor& embeddings, const Tensor& anchors,
                               const Tensor& negatives, const Tensor& centres, double margin) {
  return class_centre_triplet({embeddings, anchors, {}, negatives}, centres, margin);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "class_recognition(Tensor logits, Tensor carried, Tensor labelled, Tensor owners, float "
      "positive_weight=10.0) -> Tensor",
      class_recognition, {at::Tag::pt2_compliant_tag});
  m.def("class_cross_entropy(Tensor logits, Tensor classes, Tensor owners) -> Tensor",
        class_cross_entropy, {at::Tag::pt2_compliant_tag});
  m.def(
      "class_instance_triplet(Tensor embeddings, Tensor anchors, Tensor positives, Tensor "
      "negatives, float margin=0.2) -> Tensor",
      class_instance_triplet_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "class_centre_triplet(Tensor embeddings, Tensor anchors, Tensor negatives, Tensor centres, "
      "float margin=0.2) -> Tensor",
      class_centre_triplet_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
