#include "ops/batch_hard.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <limits>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/batch_hard.h"
#include "kernels/dot_scores.h"
#include "ops/autocast.h"
#include "ops/label_relation.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

HardPairs batch_hard(const Tensor& embeddings, const Tensor& labels,
                     const std::optional<Tensor>& groups, bool semi_hard,
                     const std::optional<Tensor>& domains) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::batch_hard", "")
                             .typed<decltype(batch_hard)>();
  return op.call(embeddings, labels, groups, semi_hard, domains);
}

namespace {

constexpr const char* kName = "batch_hard";

void check(const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& groups,
           const std::optional<Tensor>& domains) {
  check_shape(kName, "embeddings", embeddings, {-1, -1}, "[B, D]");
  check_floating(kName, "embeddings", embeddings);
  check_labels(kName, labels, groups, embeddings);
  if (domains) check_row_numbers(kName, "domains", *domains, embeddings);
  TORCH_CHECK_VALUE(embeddings.size(0) < std::numeric_limits<int32_t>::max(), kName,
                    ": embeddings must have less than 2**31 rows, got ", embeddings.size(0));
}

// What the kernels fill, for B rows of which none is compared yet.
HardPairs no_pairs(const Tensor& embeddings, const Tensor& labels) {
  const auto rows = embeddings.sizes().slice(0, 1);
  const auto type = embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor none = at::full(rows, -1, labels.options().dtype(at::kLong));
  const Tensor zero = at::zeros(rows, embeddings.options().dtype(type));
  return {none, none.clone(), zero, zero.clone()};
}

// Rows of unit length, labels and groups as the kernels want them; holds the copies alive.
struct Rows {
  Tensor unit, labels, groups, domains;

  template <class A>
  BatchHard<A> as(bool semi_hard, const HardPairs& out) const {
    const bool relation = labels.scalar_type() == at::kBool;
    return {data<A>(unit),
            relation ? nullptr : data<int64_t>(labels),
            relation ? data<uint8_t>(labels) : nullptr,
            groups.defined() ? data<int64_t>(groups) : nullptr,
            domains.defined() ? data<int64_t>(domains) : nullptr,
            unit.size(0),
            unit.size(1),
            relation || labels.dim() == 1 ? 0 : labels.size(1),
            semi_hard,
            mutable_data<int64_t>(std::get<0>(out)),
            mutable_data<int64_t>(std::get<1>(out)),
            mutable_data<A>(std::get<2>(out)),
            mutable_data<A>(std::get<3>(out))};
  }
};

Tensor whole_relation(const Tensor& labels) {
  return labels.scalar_type() == at::kBool ? labels | labels.t() : labels.contiguous();
}

// Calls f(TypeTag<A>) with the type that the rows are compared in.
template <class F>
void dispatch_compared(const Tensor& unit, const F& f) {
  unit.scalar_type() == at::kDouble ? f(TypeTag<double>{}) : f(TypeTag<float>{});
}

HardPairs batch_hard_cpu_op(const Tensor& embeddings, const Tensor& labels,
                            const std::optional<Tensor>& groups, bool semi_hard,
                            const std::optional<Tensor>& domains) {
  check(embeddings, labels, groups, domains);
  HardPairs out = no_pairs(embeddings, labels);
  // The rows that take part, by group.
  Tensor order = takes_part(labels).nonzero().squeeze(1);
  Rows rows;
  if (groups) {
    const auto [sorted, by_group] =
        at::sort(groups->index_select(0, order), /*stable=*/true, 0, /*descending=*/false);
    rows.groups = sorted;
    order = order.index_select(0, by_group);
  }
  const bool all = !groups && order.size(0) == labels.size(0);
  const auto taken = [&](const Tensor& x) { return all ? x : x.index_select(0, order); };
  rows.labels = taken(whole_relation(labels));
  if (domains) rows.domains = taken(*domains).contiguous();
  if (labels.scalar_type() == at::kBool && !all) rows.labels = rows.labels.index_select(1, order);
  rows.unit = unit_rows(taken(embeddings));
  const int64_t rest = rows.unit.size(1) % kDotLanes;
  if (rest > 0) rows.unit = at::constant_pad_nd(rows.unit, {0, kDotLanes - rest});
  rows.unit = rows.unit.contiguous();
  dispatch_compared(rows.unit, [&]<class A>(TypeTag<A>) {
    batch_hard_cpu(rows.as<A>(semi_hard, out), data<int64_t>(order));
  });
  return out;
}

#ifdef PLACKET_CUDA
HardPairs batch_hard_cuda(const Tensor& embeddings, const Tensor& labels,
                          const std::optional<Tensor>& groups, bool semi_hard,
                          const std::optional<Tensor>& domains) {
  check(embeddings, labels, groups, domains);
  const at::OptionalDeviceGuard guard(at::device_of(embeddings));
  HardPairs out = no_pairs(embeddings, labels);
  const Rows rows = {unit_rows(embeddings).contiguous(), whole_relation(labels),
                     groups ? groups->contiguous() : Tensor(),
                     domains ? domains->contiguous() : Tensor()};
  const Tensor counted = takes_part(labels).contiguous();
  dispatch_compared(rows.unit, [&]<class A>(TypeTag<A>) {
    const int64_t count = embeddings.size(0);
    const int64_t parts = 2 * count * batch_hard_splits(count) * int64_t{sizeof(Hardest<A>)};
    Tensor workspace = at::empty({parts}, counted.options().dtype(at::kByte));
    Tensor ceilings = at::empty({count}, rows.unit.options());
    check_launch(kName, launch_batch_hard(rows.as<A>(semi_hard, out), data<bool>(counted),
                                          static_cast<Hardest<A>*>(workspace.mutable_data_ptr()),
                                          mutable_data<A>(ceilings), current_stream(embeddings)));
  });
  return out;
}
#endif

HardPairs batch_hard_autocast(const Tensor& embeddings, const Tensor& labels,
                              const std::optional<Tensor>& groups, bool semi_hard,
                              const std::optional<Tensor>& domains) {
  const BelowAutocast below;
  return batch_hard(at_least_float32(embeddings), labels, groups, semi_hard, domains);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "batch_hard(Tensor embeddings, Tensor labels, Tensor? groups=None, bool semi_hard=False, "
      "Tensor? domains=None) -> (Tensor positive, Tensor negative, Tensor positive_similarity, "
      "Tensor negative_similarity)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) { m.impl("batch_hard", batch_hard_cpu_op); }
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) { m.impl("batch_hard", batch_hard_cuda); }
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("batch_hard", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) { m.impl("batch_hard", batch_hard_autocast); }
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) { m.impl("batch_hard", batch_hard_autocast); }

}  // namespace placket
