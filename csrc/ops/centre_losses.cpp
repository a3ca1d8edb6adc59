#include "ops/centre_losses.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "ops/autocast.h"
#include "ops/loss_terms.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

namespace {

void check_rows(const char* op, const Tensor& embeddings, const ClassCentres& known,
                const Tensor& attributes) {
  TORCH_CHECK_VALUE(known.centres.dim() == 2, op, ": centres must have shape [M, E], got ",
                    known.centres.sym_sizes());
  TORCH_CHECK_VALUE(embeddings.dim() == 2 && embeddings.sym_size(1) == known.centres.sym_size(1),
                    op, ": embeddings must have shape [V, ", known.centres.sym_size(1), "], got ",
                    embeddings.sym_sizes());
  TORCH_CHECK_VALUE(
      known.owners.dim() == 1 && known.owners.sym_size(0) == known.centres.sym_size(0), op,
      ": owners must have shape [M] like centres, got ", known.owners.sym_sizes());
  TORCH_CHECK_VALUE(attributes.dim() == 1 && attributes.sym_size(0) == embeddings.sym_size(0), op,
                    ": attributes must have shape [V] like embeddings, got ",
                    attributes.sym_sizes());
}

void check_classes(const char* op, const Tensor& embeddings, const Tensor& classes) {
  TORCH_CHECK_VALUE(classes.dim() == 1 && classes.sym_size(0) == embeddings.sym_size(0), op,
                    ": classes must have shape [V] like embeddings, got ", classes.sym_sizes());
}

void check_temperature(const char* op, double temperature) {
  TORCH_CHECK_VALUE(temperature > 0, op, ": temperature must be positive, got ", temperature);
}

// The classes that rows can be assigned to, and their cosines; constructed below autocast.
struct Assignable {
  Tensor cosines;  // [V, M]
  Tensor open;     // [V, M] seen, and of the row's attribute
  Tensor counts;   // [V] whether there is a choice

  Assignable(const Tensor& embeddings, const ClassCentres& known, const Tensor& attributes) {
    const Tensor z = unit_rows(embeddings);
    const Tensor centres = known.centres.detach().to(z.scalar_type());
    cosines = at::matmul(z, centres.t());
    const Tensor seen = centres.ne(0).any(1);
    open = attributes.unsqueeze(1).eq(known.owners.unsqueeze(0)) & seen;
    counts = open.sum(1).ge(2);
  }

  Tensor log_probabilities(double temperature) const {
    return cosines.div(temperature).masked_fill(~open, kMasked).log_softmax(1);
  }

  // Whether each row counts and has a class that has been seen.
  Tensor labelled(const Tensor& classes) const {
    return counts & classes.ge(0) & own(open, classes);
  }

  // Of each row the entry of its class; of class 0 where it has none.
  static Tensor own(const Tensor& table, const Tensor& classes) {
    return table.gather(1, classes.clamp_min(0).unsqueeze(1)).squeeze(1);
  }
};

Tensor prototype_cross_entropy_op(const Tensor& embeddings, const Tensor& centres,
                                  const Tensor& owners, const Tensor& attributes,
                                  const Tensor& classes, double temperature) {
  return prototype_cross_entropy(embeddings, {centres, owners}, attributes, classes, temperature);
}

Tensor centre_triplet_op(const Tensor& embeddings, const Tensor& centres, const Tensor& owners,
                         const Tensor& attributes, const Tensor& classes, double margin) {
  return centre_triplet(embeddings, {centres, owners}, attributes, classes, margin);
}

Tensor pseudo_label_cross_entropy_op(const Tensor& embeddings, const Tensor& centres,
                                     const Tensor& owners, const Tensor& attributes,
                                     const Tensor& classes, double temperature, double confidence) {
  return pseudo_label_cross_entropy(embeddings, {centres, owners}, attributes, classes, temperature,
                                    confidence);
}

Tensor assignment_consistency_op(const Tensor& first, const Tensor& second, const Tensor& centres,
                                 const Tensor& owners, const Tensor& attributes,
                                 double temperature) {
  return assignment_consistency(first, second, {centres, owners}, attributes, temperature);
}

}  // namespace

Tensor prototype_cross_entropy(const Tensor& embeddings, const ClassCentres& known,
                               const Tensor& attributes, const Tensor& classes,
                               double temperature) {
  constexpr const char* kName = "prototype_cross_entropy";
  check_rows(kName, embeddings, known, attributes);
  check_classes(kName, embeddings, classes);
  check_temperature(kName, temperature);
  const BelowAutocast below;
  const Assignable rows(embeddings, known, attributes);
  return mean_of(-Assignable::own(rows.log_probabilities(temperature), classes),
                 rows.labelled(classes));
}

Tensor centre_triplet(const Tensor& embeddings, const ClassCentres& known, const Tensor& attributes,
                      const Tensor& classes, double margin) {
  constexpr const char* kName = "centre_triplet";
  check_rows(kName, embeddings, known, attributes);
  check_classes(kName, embeddings, classes);
  const BelowAutocast below;
  const Assignable rows(embeddings, known, attributes);
  const Tensor ids = at::arange(known.centres.sym_size(0), classes.options());
  const Tensor others = rows.open & classes.unsqueeze(1).ne(ids.unsqueeze(0));
  const Tensor nearest = rows.cosines.masked_fill(~others, kMasked).amax(1);
  const Tensor hinge = (margin - Assignable::own(rows.cosines, classes) + nearest).clamp_min(0);
  return mean_of(hinge, rows.labelled(classes));
}

Tensor pseudo_label_cross_entropy(const Tensor& embeddings, const ClassCentres& known,
                                  const Tensor& attributes, const Tensor& classes,
                                  double temperature, double confidence) {
  constexpr const char* kName = "pseudo_label_cross_entropy";
  check_rows(kName, embeddings, known, attributes);
  check_classes(kName, embeddings, classes);
  check_temperature(kName, temperature);
  TORCH_CHECK_VALUE(confidence >= 0 && confidence < 1, kName,
                    ": confidence must be in [0, 1), got ", confidence);
  const BelowAutocast below;
  const Assignable rows(embeddings, known, attributes);
  const Tensor best = rows.log_probabilities(temperature).amax(1);
  return mean_of(-best, rows.counts & classes.lt(0) & best.exp().gt(confidence));
}

Tensor assignment_consistency(const Tensor& first, const Tensor& second, const ClassCentres& known,
                              const Tensor& attributes, double temperature) {
  constexpr const char* kName = "assignment_consistency";
  check_rows(kName, first, known, attributes);
  TORCH_CHECK_VALUE(second.sym_sizes() == first.sym_sizes(), kName,
                    ": second must have the shape of first, ", first.sym_sizes(), ", got ",
                    second.sym_sizes());
  check_temperature(kName, temperature);
  const BelowAutocast below;
  const Assignable one(first, known, attributes), other(second, known, attributes);
  const Tensor log_p = one.log_probabilities(temperature);
  const Tensor log_q = other.log_probabilities(temperature);
  const Tensor swapped = log_p.detach().exp() * log_q + log_q.detach().exp() * log_p;
  return mean_of(swapped.sum(1) * -0.5, one.counts);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "prototype_cross_entropy(Tensor embeddings, Tensor centres, Tensor owners, Tensor "
      "attributes, Tensor classes, float temperature=0.1) -> Tensor",
      prototype_cross_entropy_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "centre_triplet(Tensor embeddings, Tensor centres, Tensor owners, Tensor attributes, Tensor "
      "classes, float margin=0.2) -> Tensor",
      centre_triplet_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "pseudo_label_cross_entropy(Tensor embeddings, Tensor centres, Tensor owners, Tensor "
      "attributes, Tensor classes, float temperature=0.1, float confidence=0.8) -> Tensor",
      pseudo_label_cross_entropy_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "assignment_consistency(Tensor first, Tensor second, Tensor centres, Tensor owners, Tensor "
      "attributes, float temperature=0.1) -> Tensor",
      assignment_consistency_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
