#include "ops/pair_contrast.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "base/checks.h"
#include "base/dispatch.h"
#include "base/stream.h"
#include "kernels/dot_kernel.h"
#include "kernels/pair_contrast.h"
#include "ops/autocast.h"
#include "ops/loss_terms.h"

namespace placket {

using at::Tensor;
using std::optional;

namespace {

using Pair = std::tuple<Tensor, Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;
using Quad = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// The sum, the rows compared, and the sum's gradients in x, y, scale and bias.
using WithGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Calls an operator by its name with the types of f.
template <class F, class... Arguments>
auto call(const char* name, F*, const Arguments&... arguments) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>().call(arguments...);
}

}  // namespace

InfoNceTerms info_nce_terms(const Tensor& x, const Tensor& y, const Tensor& scale,
                            const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                            const optional<Tensor>& valid, bool symmetric) {
  return call("placket::info_nce_terms", &info_nce_terms, x, y, scale, labels, y_labels, valid,
              symmetric);
}

Pair pairwise_sigmoid_sum(const Tensor& x, const Tensor& y, const Tensor& scale,
                          const optional<Tensor>& bias, const optional<Tensor>& labels,
                          const optional<Tensor>& y_labels, const optional<Tensor>& valid) {
  return call("placket::pairwise_sigmoid_sum", &pairwise_sigmoid_sum, x, y, scale, bias, labels,
              y_labels, valid);
}

Tensor info_nce(const Tensor& x, const Tensor& y, const Tensor& scale,
                const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                const optional<Tensor>& valid, bool symmetric) {
  const auto [row_terms, row_positives, column_terms, column_positives, row_lse, column_lse] =
      info_nce_terms(x, y, scale, labels, y_labels, valid, symmetric);
  const Tensor rows = mean_of(row_terms, row_positives.gt(0));
  return symmetric ? (rows + mean_of(column_terms, column_positives.gt(0))) / 2 : rows;
}

Tensor pairwise_sigmoid(const Tensor& x, const Tensor& y, const Tensor& scale,
                        const optional<Tensor>& bias, const optional<Tensor>& labels,
                        const optional<Tensor>& y_labels, const optional<Tensor>& valid) {
  const auto [sum, compared] = pairwise_sigmoid_sum(x, y, scale, bias, labels, y_labels, valid);
  return sum / compared.clamp_min(1);
}

namespace {

Triple info_nce_backward(const Tensor& grad_rows, const Tensor& grad_columns, const Tensor& x,
                         const Tensor& y, const Tensor& scale, const optional<Tensor>& labels,
                         const optional<Tensor>& y_labels, const optional<Tensor>& valid,
                         const Tensor& row_positives, const Tensor& column_positives,
                         const Tensor& row_lse, const Tensor& column_lse, bool for_x, bool for_y) {
  return call("placket::_info_nce_terms_backward", &info_nce_backward, grad_rows, grad_columns, x,
              y, scale, labels, y_labels, valid, row_positives, column_positives, row_lse,
              column_lse, for_x, for_y);
}

WithGradients with_gradients(const Tensor& x, const Tensor& y, const Tensor& scale,
                             const optional<Tensor>& bias, const optional<Tensor>& labels,
                             const optional<Tensor>& y_labels, const optional<Tensor>& valid,
                             bool for_x, bool for_y) {
  return call("placket::_pairwise_sigmoid_gradients", &with_gradients, x, y, scale, bias, labels,
              y_labels, valid, for_x, for_y);
}

// The last four are there so that a second derivative is refused and not taken for 0.
Quad pairwise_sigmoid_backward(const Tensor& grad, const Tensor& grad_x, const Tensor& grad_y,
                               const Tensor& grad_scale, const Tensor& grad_bias, const Tensor& x,
                               const Tensor& y, const Tensor& scale, const optional<Tensor>& bias) {
  return call("placket::_pairwise_sigmoid_backward", &pairwise_sigmoid_backward, grad, grad_x,
              grad_y, grad_scale, grad_bias, x, y, scale, bias);
}

Quad pairwise_sigmoid_backward_op(const Tensor& grad, const Tensor& grad_x, const Tensor& grad_y,
                                  const Tensor& grad_scale, const Tensor& grad_bias,
                                  const Tensor& x, const Tensor& y, const Tensor& scale,
                                  const optional<Tensor>& bias) {
  return {(grad_x * grad).to(x.scalar_type()), (grad_y * grad).to(y.scalar_type()),
          (grad_scale * grad).to(scale.scalar_type()),
          (grad_bias * grad).to(bias ? bias->scalar_type() : grad_bias.scalar_type())};
}

at::ScalarType wide(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Rows, scalars and relation as the kernels want them; holds the copies alive.
struct Inputs {
  const char* op;
  Tensor x, y, scale, bias, labels, y_labels, valid;

  Inputs(const char* name, const Tensor& given_x, const Tensor& given_y, const Tensor& given_scale,
         const optional<Tensor>& given_bias, const optional<Tensor>& given_labels,
         const optional<Tensor>& given_y_labels, const optional<Tensor>& given_valid)
      : op(name) {
    check_shape(op, "x", given_x, {-1, -1}, "[B, D]");
    check_floating(op, "x", given_x);
    check_shape(op, "y", given_y, {-1, given_x.size(1)}, "[M, D] with the D of x");
    check_same_dtype(op, "y", given_y, "x", given_x);
    check_same_device(op, "y", given_y, "x", given_x);
    x = given_x.contiguous();
    y = given_y.contiguous();
    scale = scalar("scale", given_scale);
    if (given_bias) bias = scalar("bias", *given_bias);
    take_labels(given_labels, given_y_labels);
    if (!given_valid) return;
    check_dtype(op, "valid", *given_valid, at::kBool);
    check_pairs("valid", *given_valid);
    valid = given_valid->contiguous();
  }

  int64_t rows() const { return x.size(0); }
  int64_t columns() const { return y.size(0); }
  int64_t dims() const { return x.size(1); }
  at::TensorOptions options() const { return x.options().dtype(wide(x)); }

  PairRelation relation() const {
    const bool given = labels.defined() && labels.scalar_type() == at::kBool;
    const bool labelled = labels.defined() && !given;
    return {labelled ? data<int64_t>(labels) : nullptr,
            labelled ? data<int64_t>(y_labels) : nullptr,
            labelled && labels.dim() == 2 ? labels.size(1) : 0,
            given ? data<uint8_t>(labels) : nullptr,
            valid.defined() ? data<uint8_t>(valid) : nullptr,
            columns()};
  }

  // Calls f(TypeTag<A>) with the type that logits are computed in.
  template <class F>
  void dispatch(const F& f) const {
    x.scalar_type() == at::kDouble ? f(TypeTag<double>{}) : f(TypeTag<float>{});
  }

 private:
  Tensor scalar(const char* name, const Tensor& given) const {
    check_shape(op, name, given, {}, "[]");
    TORCH_CHECK_TYPE(given.is_floating_point(), op, ": ", name,
                     " must be of a floating dtype, got ", given.scalar_type());
    check_same_device(op, name, given, "x", x);
    return given.to(wide(x));
  }

  void check_pairs(const char* name, const Tensor& given) const {
    TORCH_CHECK_VALUE(given.dim() == 2 && given.size(0) == rows() && given.size(1) == columns(), op,
                      ": ", name, " must have shape [B, M] = [", rows(), ", ", columns(), "], got ",
                      given.sizes());
    check_same_device(op, name, given, "x", x);
  }

  void check_side(const char* name, const Tensor& given, int64_t count) const {
    check_dtype(op, name, given, at::kLong);
    TORCH_CHECK_VALUE((given.dim() == 1 || given.dim() == 2) && given.size(0) == count, op, ": ",
                      name, " must have a label or a set of classes for each of ", count,
                      " rows, got shape ", given.sizes());
    check_same_device(op, name, given, "x", x);
  }

  void take_labels(const optional<Tensor>& of_x, const optional<Tensor>& of_y) {
    if (of_x && of_x->scalar_type() == at::kBool) {
      TORCH_CHECK_VALUE(!of_y, op, ": y_labels must be absent where labels are a relation, got ",
                        of_y->sizes());
      check_pairs("labels", *of_x);
      labels = of_x->contiguous();
      return;
    }
    TORCH_CHECK_VALUE(of_x || !of_y, op, ": y_labels must come with labels, got them alone");
    TORCH_CHECK_VALUE(of_y || rows() == columns(), op, ": y must have as many rows as x, ", rows(),
                      ", unless y_labels or a relation say which of them are positives, got ",
                      columns());
    if (!of_x) return;
    const Tensor& other = of_y ? *of_y : *of_x;
    check_side("labels", *of_x, rows());
    check_side("y_labels", other, columns());
    TORCH_CHECK_VALUE(of_x->sizes().slice(1) == other.sizes().slice(1), op,
                      ": y_labels must have as many words to a row as labels, ",
                      of_x->sizes().slice(1), ", got ", other.sizes().slice(1));
    labels = of_x->contiguous();
    y_labels = other.contiguous();
  }
};

// What a side's rows sum up to, and the gradients of their terms.
struct Side {
  Tensor lse, positive_sum, positives;

  Side(int64_t count, at::TensorOptions options)
      : lse(at::empty({count}, options)),
        positive_sum(at::zeros({count}, options)),
        positives(at::zeros({count}, options)) {}

  Tensor terms() const {
    return at::where(positives.gt(0), lse - positive_sum / positives.clamp_min(1), 0);
  }
  template <class A>
  PairStatistics<A> as(int64_t first = 0) const {
    return {mutable_data<A>(lse) + first, mutable_data<A>(positive_sum) + first,
            mutable_data<A>(positives) + first};
  }
};

struct Weights {
  Tensor lse, weight, target;

  Weights(const Tensor& grad, const Tensor& given_lse, const Tensor& positives) {
    const Tensor counted = positives.gt(0);
    lse = given_lse.masked_fill(~counted, INFINITY);
    weight = grad.where(counted, 0).contiguous();
    target = weight / positives.clamp_min(1);
  }
  template <class A>
  PairWeights<A> as() const {
    return {data<A>(lse), data<A>(weight), data<A>(target)};
  }
};

// Gradients in x and y before they are multiplied by the scale, and in the scale.
struct RowGradients {
  Tensor x, y;

  Triple scaled(const Inputs& in, const Tensor& of_scale, bool for_x, bool for_y) const {
    const auto rows = [&](bool wanted, const Tensor& gradient) {
      return wanted ? gradient.narrow(1, 0, in.dims()) * in.scale : at::empty({0}, in.options());
    };
    return {rows(for_x, x), rows(for_y, y), of_scale};
  }
};

struct OnCpu {
  template <class A>
  static PairLogits<A> logits(const Inputs& in, const Tensor& x, const Tensor& y) {
    return {data<A>(x),
            data<A>(y),
            in.rows(),
            in.columns(),
            in.dims(),
            *data<A>(in.scale),
            in.bias.defined() ? *data<A>(in.bias) : A(0),
            in.relation()};
  }

  static void info_nce(const Inputs& in, const Side& rows, const Side* columns) {
    const Tensor x = in.x.to(wide(in.x)), y = in.y.to(wide(in.x));
    in.dispatch([&]<class A>(TypeTag<A>) {
      info_nce_cpu(logits<A>(in, x, y), rows.as<A>(),
                   columns != nullptr ? columns->as<A>() : PairStatistics<A>{});
    });
  }

  static Triple info_nce_backward(const Inputs& in, const Weights& rows, const Weights* columns,
                                  bool for_x, bool for_y) {
    return gradients(
        in, for_x, for_y, [&]<class A>(const PairLogits<A>& all, const PairGradients<A>& out) {
          info_nce_backward_cpu(all, rows.as<A>(),
                                columns != nullptr ? columns->as<A>() : PairWeights<A>{}, out);
        });
  }

  static Triple sigmoid(const Inputs& in, const Tensor& sum, const Tensor& grad_bias,
                        const Tensor& compared, bool for_x, bool for_y) {
    return gradients(in, for_x, for_y,
                     [&]<class A>(const PairLogits<A>& all, const PairGradients<A>& out) {
                       pairwise_sigmoid_cpu(all, out, mutable_data<uint8_t>(compared),
                                            mutable_data<A>(sum), mutable_data<A>(grad_bias));
                     });
  }

  static void sigmoid(const Inputs& in, const Tensor& sum, const Tensor& compared) {
    const Tensor x = in.x.to(wide(in.x)), y = in.y.to(wide(in.x));
    const Tensor grad_bias = at::empty_like(sum);
    in.dispatch([&]<class A>(TypeTag<A>) {
      pairwise_sigmoid_cpu(logits<A>(in, x, y), PairGradients<A>{}, mutable_data<uint8_t>(compared),
                           mutable_data<A>(sum), mutable_data<A>(grad_bias));
    });
  }

 private:
  // Calls f(logits, gradients to fill). The scale's gradient is that of either side's rows with
  // these rows.
  template <class F>
  static Triple gradients(const Inputs& in, bool for_x, bool for_y, const F& f) {
    const Tensor x = in.x.to(wide(in.x)), y = in.y.to(wide(in.x));
    const int64_t stride = (in.dims() + kMostTileItems - 1) / kMostTileItems * kMostTileItems;
    const bool of_y = for_y && !for_x;
    const Tensor scale = at::zeros({}, in.options());
    RowGradients out;
    if (!of_y) out.x = at::empty({in.rows(), stride}, in.options());
    if (for_y) out.y = at::empty({in.columns(), stride}, in.options());
    in.dispatch([&]<class A>(TypeTag<A>) {
      f(logits<A>(in, x, y),
        PairGradients<A>{out.x.defined() ? mutable_data<A>(out.x) : nullptr,
                         out.y.defined() ? mutable_data<A>(out.y) : nullptr, stride});
      const Tensor& rows = of_y ? y : x;
      *mutable_data<A>(scale) = row_products_cpu(data<A>(rows), data<A>(of_y ? out.y : out.x),
                                                 rows.size(0), in.dims(), stride);
    });
    return out.scaled(in, scale, for_x, for_y);
  }
};

#ifdef PLACKET_CUDA
// Strips of rows of the matrix of logits: products through cuBLAS, of bfloat16 rows as float32, and
// a kernel over each.
struct OnCuda {
  static constexpr int64_t kStripElements = 1 << 25;
  Stream stream;

  void info_nce(const Inputs& in, const Side& rows, const Side* columns) const {
    const Tensor high = columns != nullptr ? at::full_like(columns->lse, -INFINITY) : Tensor();
    const Tensor sum = columns != nullptr ? at::zeros_like(columns->lse) : Tensor();
    for_each_strip(in, [&]<class A>(const PairStrip<A>& strip, const Tensor&) {
      check_launch(in.op, launch_info_nce_rows(strip, rows.as<A>(strip.first), stream));
      if (columns == nullptr) return;
      const PairColumns<A> all = {mutable_data<A>(high), mutable_data<A>(sum),
                                  mutable_data<A>(columns->positive_sum),
                                  mutable_data<A>(columns->positives)};
      check_launch(in.op, launch_info_nce_columns(strip, all, stream));
    });
    if (columns != nullptr) columns->lse.copy_(high + sum.log());
  }

  Triple info_nce_backward(const Inputs& in, const Weights& rows, const Weights* columns,
                           bool for_x, bool for_y) const {
    return gradients(in, for_x, for_y, [&]<class A, class T>(const PairStrip<A>& strip, T* out) {
      check_launch(
          in.op, launch_info_nce_gradient(strip, rows.as<A>(),
                                          columns != nullptr ? columns->as<A>() : PairWeights<A>{},
                                          out, stream));
    });
  }

  Triple sigmoid(const Inputs& in, const Tensor& sum, const Tensor& grad_bias,
                 const Tensor& compared, bool for_x, bool for_y) const {
    const Tensor losses = at::zeros({in.rows()}, in.options()), biases = at::zeros_like(losses);
    const Triple out =
        gradients(in, for_x, for_y, [&]<class A, class T>(const PairStrip<A>& strip, T* gradient) {
          launch_sigmoid(in, strip, losses, biases, compared, gradient);
        });
    sum.copy_(losses.sum());
    grad_bias.copy_(biases.sum());
    return out;
  }

  void sigmoid(const Inputs& in, const Tensor& sum, const Tensor& compared) const {
    const Tensor losses = at::zeros({in.rows()}, in.options()), biases = at::zeros_like(losses);
    for_each_strip(in, [&]<class A>(const PairStrip<A>& strip, const Tensor&) {
      launch_sigmoid(in, strip, losses, biases, compared, static_cast<A*>(nullptr));
    });
    sum.copy_(losses.sum());
  }

 private:
  template <class A, class T>
  void launch_sigmoid(const Inputs& in, const PairStrip<A>& strip, const Tensor& losses,
                      const Tensor& biases, const Tensor& compared, T* gradient) const {
    const PairRowSums<A> rows = {mutable_data<A>(losses) + strip.first,
                                 mutable_data<A>(biases) + strip.first,
                                 mutable_data<uint8_t>(compared) + strip.first};
    check_launch(in.op, launch_pairwise_sigmoid(strip, rows, gradient, stream));
  }

  static void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
    Tensor target = out;
    a.scalar_type() == at::kBFloat16 ? at::mm_out(target, a, b, at::kFloat)
                                     : at::mm_out(target, a, b);
  }

  // Calls f(strip, its rows of x).
  template <class F>
  static void for_each_strip(const Inputs& in, const F& f) {
    if (in.rows() == 0 || in.columns() == 0) return;
    const int64_t most = std::min(in.rows(), std::max<int64_t>(64, kStripElements / in.columns()));
    const Tensor products = at::empty({most, in.columns()}, in.options());
    for (int64_t first = 0; first < in.rows(); first += most) {
      const int64_t rows = std::min(most, in.rows() - first);
      const Tensor x = in.x.narrow(0, first, rows), z = products.narrow(0, 0, rows);
      multiply(z, x, in.y.t());
      in.dispatch([&]<class A>(TypeTag<A>) {
        f(PairStrip<A>{data<A>(z), first, rows, in.columns(), data<A>(in.scale),
                       in.bias.defined() ? data<A>(in.bias) : nullptr, in.relation()},
          x);
      });
    }
  }

  // Calls f(strip, its gradient in the logits, to fill).
  template <class F>
  static Triple gradients(const Inputs& in, bool for_x, bool for_y, const F& f) {
    const bool of_y = for_y && !for_x;
    RowGradients out;
    if (!of_y) out.x = at::zeros({in.rows(), in.dims()}, in.options());
    if (for_y) out.y = at::zeros({in.columns(), in.dims()}, in.options());
    const Tensor part = for_y ? at::empty_like(out.y) : Tensor();
    for_each_strip(in, [&]<class A>(const PairStrip<A>& strip, const Tensor& x) {
      const Tensor gradient = at::empty({strip.rows, strip.columns}, in.x.options());
      if constexpr (std::is_same_v<A, float>) {
        in.x.scalar_type() == at::kBFloat16 ? f(strip, mutable_data<BFloat16>(gradient))
                                            : f(strip, mutable_data<float>(gradient));
      } else {
        f(strip, mutable_data<A>(gradient));
      }
      if (!of_y) multiply(out.x.narrow(0, strip.first, strip.rows), gradient, in.y);
      if (for_y) {
        multiply(part, gradient.t(), x);
        out.y.add_(part);
      }
    });
    const Tensor scale = of_y ? (out.y * in.y).sum() : (out.x * in.x).sum();
    return out.scaled(in, scale, for_x, for_y);
  }
};
#endif

template <class Device>
InfoNceTerms terms(const Device& device, const Tensor& x, const Tensor& y, const Tensor& scale,
                   const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                   const optional<Tensor>& valid, bool symmetric) {
  const Inputs in("info_nce", x, y, scale, {}, labels, y_labels, valid);
  const Side rows(in.rows(), in.options()), columns(symmetric ? in.columns() : 0, in.options());
  rows.lse.fill_(-INFINITY);
  columns.lse.fill_(-INFINITY);
  if (in.rows() > 0 && in.columns() > 0) device.info_nce(in, rows, symmetric ? &columns : nullptr);
  return {rows.terms(), rows.positives, columns.terms(), columns.positives, rows.lse, columns.lse};
}

template <class Device>
Triple terms_backward(const Device& device, const Tensor& grad_rows, const Tensor& grad_columns,
                      const Tensor& x, const Tensor& y, const Tensor& scale,
                      const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                      const optional<Tensor>& valid, const Tensor& row_positives,
                      const Tensor& column_positives, const Tensor& row_lse,
                      const Tensor& column_lse, bool for_x, bool for_y) {
  const Inputs in("info_nce", x, y, scale, {}, labels, y_labels, valid);
  const Weights rows(grad_rows, row_lse, row_positives);
  const bool symmetric = column_lse.size(0) == y.size(0);
  const Weights columns(grad_columns, column_lse, column_positives);
  const auto [of_x, of_y, of_scale] =
      device.info_nce_backward(in, rows, symmetric ? &columns : nullptr, for_x, for_y);
  return {of_x.to(x.scalar_type()), of_y.to(y.scalar_type()), of_scale.to(scale.scalar_type())};
}

template <class Device>
Pair sigmoid_sum(const Device& device, const Tensor& x, const Tensor& y, const Tensor& scale,
                 const optional<Tensor>& bias, const optional<Tensor>& labels,
                 const optional<Tensor>& y_labels, const optional<Tensor>& valid) {
  const Inputs in("pairwise_sigmoid", x, y, scale, bias, labels, y_labels, valid);
  const Tensor sum = at::zeros({}, in.options());
  const Tensor compared = at::zeros({in.rows()}, x.options().dtype(at::kByte));
  if (in.rows() > 0 && in.columns() > 0) device.sigmoid(in, sum, compared);
  return {sum, compared.sum()};
}

template <class Device>
WithGradients sigmoid_gradients(const Device& device, const Tensor& x, const Tensor& y,
                                const Tensor& scale, const optional<Tensor>& bias,
                                const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                                const optional<Tensor>& valid, bool for_x, bool for_y) {
  const Inputs in("pairwise_sigmoid", x, y, scale, bias, labels, y_labels, valid);
  const Tensor sum = at::zeros({}, in.options()), grad_bias = at::zeros_like(sum);
  const Tensor compared = at::zeros({in.rows()}, x.options().dtype(at::kByte));
  const auto [of_x, of_y, of_scale] = device.sigmoid(in, sum, grad_bias, compared, for_x, for_y);
  return {sum, compared.sum(), of_x, of_y, of_scale, grad_bias};
}

InfoNceTerms info_nce_terms_cpu(const Tensor& x, const Tensor& y, const Tensor& scale,
                                const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                                const optional<Tensor>& valid, bool symmetric) {
  return terms(OnCpu{}, x, y, scale, labels, y_labels, valid, symmetric);
}

Triple info_nce_backward_cpu_op(const Tensor& grad_rows, const Tensor& grad_columns,
                                const Tensor& x, const Tensor& y, const Tensor& scale,
                                const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                                const optional<Tensor>& valid, const Tensor& row_positives,
                                const Tensor& column_positives, const Tensor& row_lse,
                                const Tensor& column_lse, bool for_x, bool for_y) {
  return terms_backward(OnCpu{}, grad_rows, grad_columns, x, y, scale, labels, y_labels, valid,
                        row_positives, column_positives, row_lse, column_lse, for_x, for_y);
}

Pair pairwise_sigmoid_sum_cpu(const Tensor& x, const Tensor& y, const Tensor& scale,
                              const optional<Tensor>& bias, const optional<Tensor>& labels,
                              const optional<Tensor>& y_labels, const optional<Tensor>& valid) {
  return sigmoid_sum(OnCpu{}, x, y, scale, bias, labels, y_labels, valid);
}

WithGradients with_gradients_cpu(const Tensor& x, const Tensor& y, const Tensor& scale,
                                 const optional<Tensor>& bias, const optional<Tensor>& labels,
                                 const optional<Tensor>& y_labels, const optional<Tensor>& valid,
                                 bool for_x, bool for_y) {
  return sigmoid_gradients(OnCpu{}, x, y, scale, bias, labels, y_labels, valid, for_x, for_y);
}

#ifdef PLACKET_CUDA
InfoNceTerms info_nce_terms_cuda(const Tensor& x, const Tensor& y, const Tensor& scale,
                                 const optional<Tensor>& labels, const optional<Tensor>& y_labels,
                                 const optional<Tensor>& valid, bool symmetric) {
  const at::OptionalDeviceGuard guard(at::device_of(x));
  return terms(OnCuda{current_stream(x)}, x, y, scale, labels, y_labels, valid, symmetric);
}

Triple info_nce_backward_cuda(const Tensor& grad_rows, const Tensor& grad_columns, const Tensor& x,
                              const Tensor& y, const Tensor& scale, const optional<Tensor>& labels,
                              const optional<Tensor>& y_labels, const optional<Tensor>& valid,
                              const Tensor& row_positives, const Tensor& column_positives,
                              const Tensor& row_lse, const Tensor& column_lse, bool for_x,
                              bool for_y) {
  const at::OptionalDeviceGuard guard(at::device_of(x));
  return terms_backward(OnCuda{current_stream(x)}, grad_rows, grad_columns, x, y, scale, labels,
                        y_labels, valid, row_positives, column_positives, row_lse, column_lse,
                        for_x, for_y);
}

Pair pairwise_sigmoid_sum_cuda(const Tensor& x, const Tensor& y, const Tensor& scale,
                               const optional<Tensor>& bias, const optional<Tensor>& labels,
                               const optional<Tensor>& y_labels, const optional<Tensor>& valid) {
  const at::OptionalDeviceGuard guard(at::device_of(x));
  return sigmoid_sum(OnCuda{current_stream(x)}, x, y, scale, bias, labels, y_labels, valid);
}

WithGradients with_gradients_cuda(const Tensor& x, const Tensor& y, const Tensor& scale,
                                  const optional<Tensor>& bias, const optional<Tensor>& labels,
                                  const optional<Tensor>& y_labels, const optional<Tensor>& valid,
                                  bool for_x, bool for_y) {
  const at::OptionalDeviceGuard guard(at::device_of(x));
  return sigmoid_gradients(OnCuda{current_stream(x)}, x, y, scale, bias, labels, y_labels, valid,
                           for_x, for_y);
}
#endif

struct InfoNceFunction : torch::autograd::Function<InfoNceFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& x, const Tensor& y,
                                                const Tensor& scale, const optional<Tensor>& labels,
                                                const optional<Tensor>& y_labels,
                                                const optional<Tensor>& valid, bool symmetric) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [rows, row_positives, columns, column_positives, row_lse, column_lse] =
        info_nce_terms(x, y, scale, labels, y_labels, valid, symmetric);
    ctx->mark_non_differentiable({row_positives, column_positives, row_lse, column_lse});
    ctx->save_for_backward({x, y, scale, labels.value_or(Tensor()), y_labels.value_or(Tensor()),
                            valid.value_or(Tensor()), row_positives, column_positives, row_lse,
                            column_lse});
    ctx->saved_data["for_x"] = x.requires_grad();
    ctx->saved_data["for_y"] = y.requires_grad();
    return {rows, row_positives, columns, column_positives, row_lse, column_lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const bool for_x = ctx->saved_data["for_x"].toBool(), for_y = ctx->saved_data["for_y"].toBool();
    const auto given = [&](size_t i) {
      return saved[i].defined() ? optional<Tensor>(saved[i]) : std::nullopt;
    };
    const auto grad_or_zero = [&](size_t i, const Tensor& like) {
      return grad[i].defined() ? grad[i] : at::zeros_like(like);
    };
    const auto [x, y, scale] = info_nce_backward(
        grad_or_zero(0, saved[8]), grad_or_zero(2, saved[9]), saved[0], saved[1], saved[2],
        given(3), given(4), given(5), saved[6], saved[7], saved[8], saved[9], for_x, for_y);
    return {
        for_x ? x : Tensor(), for_y ? y : Tensor(), scale, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

InfoNceTerms info_nce_terms_autograd(const Tensor& x, const Tensor& y, const Tensor& scale,
                                     const optional<Tensor>& labels,
                                     const optional<Tensor>& y_labels,
                                     const optional<Tensor>& valid, bool symmetric) {
  const auto out = InfoNceFunction::apply(x, y, scale, labels, y_labels, valid, symmetric);
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

struct PairwiseSigmoidFunction : torch::autograd::Function<PairwiseSigmoidFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& x, const Tensor& y,
                                                const Tensor& scale, const optional<Tensor>& bias,
                                                const optional<Tensor>& labels,
                                                const optional<Tensor>& y_labels,
                                                const optional<Tensor>& valid) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const bool for_x = x.requires_grad(), for_y = y.requires_grad();
    const auto [sum, compared, of_x, of_y, of_scale, of_bias] =
        with_gradients(x, y, scale, bias, labels, y_labels, valid, for_x, for_y);
    ctx->mark_non_differentiable({compared});
    ctx->save_for_backward({of_x, of_y, of_scale, of_bias, x, y, scale, bias.value_or(Tensor())});
    ctx->saved_data["for_x"] = for_x;
    ctx->saved_data["for_y"] = for_y;
    return {sum, compared};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const auto saved = ctx->get_saved_variables();
    const auto bias = saved[7].defined() ? optional<Tensor>(saved[7]) : std::nullopt;
    const auto [x, y, scale, of_bias] = pairwise_sigmoid_backward(
        grad[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], bias);
    return {ctx->saved_data["for_x"].toBool() ? x : Tensor(),
            ctx->saved_data["for_y"].toBool() ? y : Tensor(),
            scale,
            bias ? of_bias : Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

Pair pairwise_sigmoid_sum_autograd(const Tensor& x, const Tensor& y, const Tensor& scale,
                                   const optional<Tensor>& bias, const optional<Tensor>& labels,
                                   const optional<Tensor>& y_labels,
                                   const optional<Tensor>& valid) {
  const bool wanted =
      at::GradMode::is_enabled() && (x.requires_grad() || y.requires_grad() ||
                                     scale.requires_grad() || (bias && bias->requires_grad()));
  if (!wanted) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return pairwise_sigmoid_sum(x, y, scale, bias, labels, y_labels, valid);
  }
  const auto out = PairwiseSigmoidFunction::apply(x, y, scale, bias, labels, y_labels, valid);
  return {out[0], out[1]};
}

// Rows of one dtype, the wider of the two.
Pair rows_of_one_dtype(const Tensor& x, const Tensor& y) {
  const auto rows = [](const Tensor& given) {
    return given.scalar_type() == at::kHalf ? given.to(at::kFloat) : given;
  };
  const Tensor a = rows(x), b = rows(y);
  const auto type = at::promote_types(a.scalar_type(), b.scalar_type());
  return {a.to(type), b.to(type)};
}

InfoNceTerms info_nce_terms_autocast(const Tensor& x, const Tensor& y, const Tensor& scale,
                                     const optional<Tensor>& labels,
                                     const optional<Tensor>& y_labels,
                                     const optional<Tensor>& valid, bool symmetric) {
  const BelowAutocast below;
  const auto [a, b] = rows_of_one_dtype(x, y);
  return info_nce_terms(a, b, scale, labels, y_labels, valid, symmetric);
}

Pair pairwise_sigmoid_sum_autocast(const Tensor& x, const Tensor& y, const Tensor& scale,
                                   const optional<Tensor>& bias, const optional<Tensor>& labels,
                                   const optional<Tensor>& y_labels,
                                   const optional<Tensor>& valid) {
  const BelowAutocast below;
  const auto [a, b] = rows_of_one_dtype(x, y);
  return pairwise_sigmoid_sum(a, b, scale, bias, labels, y_labels, valid);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "info_nce(Tensor x, Tensor y, Tensor scale, Tensor? labels=None, Tensor? y_labels=None, "
      "Tensor? valid=None, bool symmetric=True) -> Tensor",
      info_nce, {at::Tag::pt2_compliant_tag});
  m.def(
      "info_nce_terms(Tensor x, Tensor y, Tensor scale, Tensor? labels=None, Tensor? "
      "y_labels=None, Tensor? valid=None, bool symmetric=True) -> (Tensor row_terms, Tensor "
      "row_positives, Tensor column_terms, Tensor column_positives, Tensor row_lse, Tensor "
      "column_lse)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_info_nce_terms_backward(Tensor grad_rows, Tensor grad_columns, Tensor x, Tensor y, Tensor "
      "scale, Tensor? labels, Tensor? y_labels, Tensor? valid, Tensor row_positives, Tensor "
      "column_positives, Tensor row_lse, Tensor column_lse, bool for_x, bool for_y) -> (Tensor, "
      "Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "pairwise_sigmoid(Tensor x, Tensor y, Tensor scale, Tensor? bias=None, Tensor? labels=None, "
      "Tensor? y_labels=None, Tensor? valid=None) -> Tensor",
      pairwise_sigmoid, {at::Tag::pt2_compliant_tag});
  m.def(
      "pairwise_sigmoid_sum(Tensor x, Tensor y, Tensor scale, Tensor? bias=None, Tensor? "
      "labels=None, Tensor? y_labels=None, Tensor? valid=None) -> (Tensor sum, Tensor compared)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_pairwise_sigmoid_gradients(Tensor x, Tensor y, Tensor scale, Tensor? bias, Tensor? labels, "
      "Tensor? y_labels, Tensor? valid, bool for_x, bool for_y) -> (Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_pairwise_sigmoid_backward(Tensor grad, Tensor grad_x, Tensor grad_y, Tensor grad_scale, "
      "Tensor grad_bias, Tensor x, Tensor y, Tensor scale, Tensor? bias) -> (Tensor, Tensor, "
      "Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("info_nce_terms", info_nce_terms_cpu);
  m.impl("_info_nce_terms_backward", info_nce_backward_cpu_op);
  m.impl("pairwise_sigmoid_sum", pairwise_sigmoid_sum_cpu);
  m.impl("_pairwise_sigmoid_gradients", with_gradients_cpu);
  m.impl("_pairwise_sigmoid_backward", pairwise_sigmoid_backward_op);
}
#ifdef PLACKET_CUDA
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("info_nce_terms", info_nce_terms_cuda);
  m.impl("_info_nce_terms_backward", info_nce_backward_cuda);
  m.impl("pairwise_sigmoid_sum", pairwise_sigmoid_sum_cuda);
  m.impl("_pairwise_sigmoid_gradients", with_gradients_cuda);
  m.impl("_pairwise_sigmoid_backward", pairwise_sigmoid_backward_op);
}
#endif
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("info_nce_terms", info_nce_terms_autograd);
  m.impl("_info_nce_terms_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("pairwise_sigmoid_sum", pairwise_sigmoid_sum_autograd);
  m.impl("_pairwise_sigmoid_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) {
  m.impl("info_nce_terms", info_nce_terms_autocast);
  m.impl("pairwise_sigmoid_sum", pairwise_sigmoid_sum_autocast);
}
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) {
  m.impl("info_nce_terms", info_nce_terms_autocast);
  m.impl("pairwise_sigmoid_sum", pairwise_sigmoid_sum_autocast);
}

}  // namespace placket
