#include "ops/class_centres.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/class_centres.h"

namespace placket {

using at::Tensor;
using SumsAndCounts = std::tuple<Tensor, Tensor>;

Tensor class_centres(const Tensor& centres, const Tensor& embeddings, const Tensor& classes,
                     double momentum) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::class_centres", "")
                             .typed<decltype(class_centres)>();
  return op.call(centres, embeddings, classes, momentum);
}

SumsAndCounts class_sums(const Tensor& embeddings, const Tensor& classes, int64_t count) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::class_sums", "")
                             .typed<decltype(class_sums)>();
  return op.call(embeddings, classes, count);
}

Tensor class_centres_of_sums(const Tensor& centres, const Tensor& sums, const Tensor& counts,
                             double momentum) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::class_centres_of_sums", "")
                             .typed<decltype(class_centres_of_sums)>();
  return op.call(centres, sums, counts, momentum);
}

namespace {

at::ScalarType wide(const Tensor& embeddings) {
  return embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_momentum(const char* op, double momentum) {
  TORCH_CHECK_VALUE(momentum >= 0 && momentum < 1, op, ": momentum must be in [0, 1), got ",
                    momentum);
}

// The rows as the kernels want them; holds the contiguous copies alive.
struct Rows {
  Tensor embeddings, classes;
  int64_t count;

  Rows(const char* op, const Tensor& z, const Tensor& c, int64_t count) : count(count) {
    check_shape(op, "embeddings", z, {-1, -1}, "[V, E]");
    check_shape(op, "classes", c, {z.size(0)}, "[V] like embeddings");
    check_floating(op, "embeddings", z);
    check_dtype(op, "classes", c, at::kLong);
    check_same_device(op, "classes", c, "embeddings", z);
    embeddings = z.contiguous();
    classes = c.contiguous();
    if (!classes.is_cpu()) return;
    const int64_t* values = data<int64_t>(classes);
    for (int64_t i = 0; i < classes.size(0); ++i) {
      TORCH_CHECK_VALUE(values[i] >= -1 && values[i] < count, op,
                        ": classes must be -1 or an id below ", count, ", got ", values[i],
                        " for row ", i);
    }
  }

  template <class T>
  ClassRows<T> as() const {
    return {data<T>(embeddings), data<int64_t>(classes), embeddings.size(0), embeddings.size(1),
            count};
  }
};

// The centres, checked against what they are to have in common with `like` [*, E].
struct Kept {
  Tensor centres;
  double momentum;

  Kept(const char* op, const Tensor& given, const Tensor& like, const char* like_name,
       double momentum)
      : momentum(momentum) {
    check_shape(op, "centres", given, {-1, like.size(1)}, "[M, E]");
    TORCH_CHECK_TYPE(given.scalar_type() == wide(like), op, ": centres must be ", wide(like),
                     " with ", like_name, " of ", like.scalar_type(), ", got ",
                     given.scalar_type());
    check_same_device(op, "centres", given, like_name, like);
    check_momentum(op, momentum);
    centres = given.contiguous();
  }

  template <class A>
  Centres<A> as() const {
    return {data<A>(centres), centres.size(0), centres.size(1), momentum};
  }
};

constexpr const char* kCentres = "class_centres";
constexpr const char* kSums = "class_sums";
constexpr const char* kOfSums = "class_centres_of_sums";

Rows rows_for_centres(const Tensor& centres, const Tensor& embeddings, const Tensor& classes) {
  check_shape(kCentres, "centres", centres, {-1, -1}, "[M, E]");
  return {kCentres, embeddings, classes, centres.size(0)};
}

SumsAndCounts empty_sums(const Rows& rows) {
  TORCH_CHECK_VALUE(rows.count >= 0, kSums, ": count must be at least 0, got ", rows.count);
  const auto options = rows.embeddings.options().dtype(wide(rows.embeddings));
  return {at::empty({rows.count, rows.embeddings.size(1)}, options),
          at::empty({rows.count}, options)};
}

// What class_centres_of_sums reads; holds the contiguous copies alive.
struct Sums {
  Tensor sums, counts;

  Sums(const Tensor& centres, const Tensor& s, const Tensor& c) {
    check_shape(kOfSums, "sums", s, {centres.size(0), -1}, "[M, E] like centres");
    check_shape(kOfSums, "counts", c, {centres.size(0)}, "[M] like centres");
    check_same_dtype(kOfSums, "counts", c, "sums", s);
    check_same_device(kOfSums, "counts", c, "sums", s);
    sums = s.contiguous();
    counts = c.contiguous();
  }
};

Tensor class_centres_cpu_op(const Tensor& centres, const Tensor& embeddings, const Tensor& classes,
                            double momentum) {
  const Rows rows = rows_for_centres(centres, embeddings, classes);
  const Kept kept(kCentres, centres, rows.embeddings, "embeddings", momentum);
  Tensor moved = at::empty_like(kept.centres);
  dispatch_floating(kCentres, embeddings.scalar_type(), [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    class_centres_cpu(rows.as<T>(), kept.as<A>(), mutable_data<A>(moved));
  });
  return moved;
}

SumsAndCounts class_sums_cpu_op(const Tensor& embeddings, const Tensor& classes, int64_t count) {
  const Rows rows(kSums, embeddings, classes, count);
  const auto [sums, counts] = empty_sums(rows);
  dispatch_floating(kSums, embeddings.scalar_type(),
                    [&, &sums = sums, &counts = counts]<class T>(TypeTag<T>) {
                      using A = accumulate_t<T>;
                      class_sums_cpu(rows.as<T>(), mutable_data<A>(sums), mutable_data<A>(counts));
                    });
  return {sums, counts};
}

Tensor class_centres_of_sums_cpu_op(const Tensor& centres, const Tensor& sums, const Tensor& counts,
                                    double momentum) {
  check_shape(kOfSums, "centres", centres, {-1, -1}, "[M, E]");
  const Sums added(centres, sums, counts);
  const Kept kept(kOfSums, centres, added.sums, "sums", momentum);
  Tensor moved = at::empty_like(kept.centres);
  const auto run = [&]<class A>(TypeTag<A>) {
    class_centres_of_sums_cpu(kept.as<A>(), data<A>(added.sums), data<A>(added.counts),
                              mutable_data<A>(moved));
  };
  kept.centres.scalar_type() == at::kDouble ? run(TypeTag<double>{}) : run(TypeTag<float>{});
  return moved;
}

#ifdef PLACKET_CUDA
Tensor class_centres_cuda(const Tensor& centres, const Tensor& embeddings, const Tensor& classes,
                          double momentum) {
  const at::OptionalDeviceGuard guard(at::device_of(centres));
  const Rows rows = rows_for_centres(centres, embeddings, classes);
  const Kept kept(kCentres, centres, rows.embeddings, "embeddings", momentum);
  Tensor moved = at::empty_like(kept.centres);
  const Tensor inverse = at::empty({embeddings.size(0)}, moved.options());
  dispatch_floating(kCentres, embeddings.scalar_type(), [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    check_launch(kCentres,
                 launch_class_centres(rows.as<T>(), kept.as<A>(), mutable_data<A>(inverse),
                                      mutable_data<A>(moved), current_stream(centres)));
  });
  return moved;
}

SumsAndCounts class_sums_cuda(const Tensor& embeddings, const Tensor& classes, int64_t count) {
  const at::OptionalDeviceGuard guard(at::device_of(embeddings));
  const Rows rows(kSums, embeddings, classes, count);
  const auto [sums, counts] = empty_sums(rows);
  const Tensor inverse = at::empty({embeddings.size(0)}, sums.options());
  dispatch_floating(
      kSums, embeddings.scalar_type(), [&, &sums = sums, &counts = counts]<class T>(TypeTag<T>) {
        using A = accumulate_t<T>;
        check_launch(
            kSums, launch_class_sums(rows.as<T>(), mutable_data<A>(inverse), mutable_data<A>(sums),
                                     mutable_data<A>(counts), current_stream(embeddings)));
      });
  return {sums, counts};
}

Tensor class_centres_of_sums_cuda(const Tensor& centres, const Tensor& sums, const Tensor& counts,
                                  double momentum) {
  const at::OptionalDeviceGuard guard(at::device_of(centres));
  check_shape(kOfSums, "centres", centres, {-1, -1}, "[M, E]");
  const Sums added(centres, sums, counts);
  const Kept kept(kOfSums, centres, added.sums, "sums", momentum);
  Tensor moved = at::empty_like(kept.centres);
  const auto run = [&]<class A>(TypeTag<A>) {
    check_launch(kOfSums, launch_class_centres_of_sums(
                              kept.as<A>(), data<A>(added.sums), data<A>(added.counts),
                              mutable_data<A>(moved), current_stream(centres)));
  };
  kept.centres.scalar_type() == at::kDouble ? run(TypeTag<double>{}) : run(TypeTag<float>{});
  return moved;
}
#endif

// Results without a gradient, whatever the arguments carry.
Tensor class_centres_autograd(const Tensor& centres, const Tensor& embeddings,
                              const Tensor& classes, double momentum) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return class_centres(centres, embeddings, classes, momentum);
}

SumsAndCounts class_sums_autograd(const Tensor& embeddings, const Tensor& classes, int64_t count) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return class_sums(embeddings, classes, count);
}

Tensor class_centres_of_sums_autograd(const Tensor& centres, const Tensor& sums,
                                      const Tensor& counts, double momentum) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return class_centres_of_sums(centres, sums, counts, momentum);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "class_centres(Tensor centres, Tensor embeddings, Tensor classes, float momentum=0.9) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("class_sums(Tensor embeddings, Tensor classes, int count) -> (Tensor sums, Tensor counts)",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "class_centres_of_sums(Tensor centres, Tensor sums, Tensor counts, float momentum=0.9) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("class_centres", class_centres_cpu_op);
  m.impl("class_sums", class_sums_cpu_op);
  m.impl("class_centres_of_sums", class_centres_of_sums_cpu_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("class_centres", class_centres_cuda);
  m.impl("class_sums", class_sums_cuda);
  m.impl("class_centres_of_sums", class_centres_of_sums_cuda);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("class_centres", class_centres_autograd);
  m.impl("class_sums", class_sums_autograd);
  m.impl("class_centres_of_sums", class_centres_of_sums_autograd);
}

}  // namespace placket
