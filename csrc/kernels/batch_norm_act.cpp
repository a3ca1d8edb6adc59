#include "kernels/batch_norm_act.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"

// Every pass walks whole rows of channels, so that the innermost loop is contiguous; the sums of a
// chunk of rows stay in the first-level cache. The second pass over a map walks backwards, since
// what the first has read last is still in cache. The leaf functions are written once as templates
// and instantiated in functions that PLACKET_SIMD may clone; __restrict and a form for each case
// are what lets compilers vectorise them.
namespace placket {
namespace {

// Sums of (x - shift) and its square over rows. Subtracting a value of the data itself keeps the
// difference of squares free of cancellation when a channel's mean is far larger than its
// deviation.
template <class T, class A>
inline __attribute__((always_inline)) void moments(const T* __restrict x, int64_t rows,
                                                   int64_t channels, const A* __restrict shift,
                                                   A* __restrict sum, A* __restrict square) {
  for (int64_t r = 0; r < rows; ++r, x += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const A v = A(x[c]) - shift[c];
      sum[c] += v;
      square[c] += v * v;
    }
  }
}

template <bool kResidual, class T, class A>
inline __attribute__((always_inline)) void apply(const T* __restrict x,
                                                 const T* __restrict residual, int64_t rows,
                                                 int64_t channels, const A* __restrict scale,
                                                 const A* __restrict offset, bool relu,
                                                 T* __restrict y) {
  const A floor = relu ? A(0) : A(-INFINITY);
  for (int64_t r = 0; r < rows; ++r, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      A v = A(x[c]) * scale[c] + offset[c];
      if constexpr (kResidual) v += A(residual[c]);
      y[c] = T(v < floor ? floor : v);
    }
    if constexpr (kResidual) residual += channels;
  }
}

// The gradient before the ReLU; it goes to `masked` as well where that is wanted.
template <bool kRelu, bool kMasked, class T, class A>
inline __attribute__((always_inline)) void gradient_sums(const T* __restrict grad,
                                                         const T* __restrict x,
                                                         const T* __restrict y, int64_t rows,
                                                         int64_t channels, const A* __restrict mean,
                                                         A* __restrict sum, A* __restrict product,
                                                         T* __restrict masked) {
  for (int64_t r = 0; r < rows; ++r, grad += channels, x += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      A g = A(grad[c]);
      if constexpr (kRelu) g = A(y[c]) > A(0) ? g : A(0);
      sum[c] += g;
      product[c] += g * (A(x[c]) - mean[c]);
      if constexpr (kMasked) masked[c] = T(g);
    }
    if constexpr (kRelu) y += channels;
    if constexpr (kMasked) masked += channels;
  }
}

// grad_input = a * grad - b * (x - mean) - d, by channel.
template <bool kRelu, class T, class A>
inline __attribute__((always_inline)) void gradient_apply(
    const T* __restrict grad, const T* __restrict x, const T* __restrict y, int64_t rows,
    int64_t channels, const A* __restrict mean, const A* __restrict a, const A* __restrict b,
    const A* __restrict d, T* __restrict grad_input) {
  for (int64_t r = 0; r < rows; ++r, grad += channels, x += channels, grad_input += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      A g = A(grad[c]);
      if constexpr (kRelu) g = A(y[c]) > A(0) ? g : A(0);
      grad_input[c] = T(a[c] * g - b[c] * (A(x[c]) - mean[c]) - d[c]);
    }
    if constexpr (kRelu) y += channels;
  }
}

#define PLACKET_LEAVES(T, A)                                                                     \
  PLACKET_SIMD void moments_of(const T* x, int64_t rows, int64_t channels, const A* shift, A* s, \
                               A* q) {                                                           \
    moments(x, rows, channels, shift, s, q);                                                     \
  }                                                                                              \
  PLACKET_SIMD void apply_to(const T* x, const T* residual, int64_t rows, int64_t channels,      \
                             const A* scale, const A* offset, bool relu, T* y) {                 \
    if (residual != nullptr) {                                                                   \
      apply<true>(x, residual, rows, channels, scale, offset, relu, y);                          \
    } else {                                                                                     \
      apply<false>(x, residual, rows, channels, scale, offset, relu, y);                         \
    }                                                                                            \
  }                                                                                              \
  PLACKET_SIMD void gradient_sums_of(const T* grad, const T* x, const T* y, int64_t rows,        \
                                     int64_t channels, const A* mean, A* s, A* p, T* masked) {   \
    if (y == nullptr) {                                                                          \
      gradient_sums<false, false>(grad, x, y, rows, channels, mean, s, p, masked);               \
    } else if (masked == nullptr) {                                                              \
      gradient_sums<true, false>(grad, x, y, rows, channels, mean, s, p, masked);                \
    } else {                                                                                     \
      gradient_sums<true, true>(grad, x, y, rows, channels, mean, s, p, masked);                 \
    }                                                                                            \
  }                                                                                              \
  PLACKET_SIMD void gradient_apply_to(const T* grad, const T* x, const T* y, int64_t rows,       \
                                      int64_t channels, const A* mean, const A* a, const A* b,   \
                                      const A* d, T* grad_input) {                               \
    if (y == nullptr) {                                                                          \
      gradient_apply<false>(grad, x, y, rows, channels, mean, a, b, d, grad_input);              \
    } else {                                                                                     \
      gradient_apply<true>(grad, x, y, rows, channels, mean, a, b, d, grad_input);               \
    }                                                                                            \
  }

PLACKET_LEAVES(float, float)
PLACKET_LEAVES(double, double)
PLACKET_LEAVES(BFloat16, float)
#undef PLACKET_LEAVES

enum class Order { kForwards, kBackwards };

// Calls f(group, first row of the group's rows, rows, chunk) for every chunk, on all threads.
template <class F>
void for_each_chunk(const BatchNormShape& shape, Order order, const F& f) {
  const int64_t chunks = shape.chunks();
  parallel_for(0, shape.groups * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t step = first; step < last; ++step) {
      const int64_t i = order == Order::kForwards ? step : first + last - 1 - step;
      const int64_t row = i % chunks * shape.kChunk;
      f(i / chunks, row, std::min(shape.kChunk, shape.rows - row), i % chunks);
    }
  });
}

}  // namespace

template <class T>
void batch_norm_act_cpu(const BatchNormForward<T>& pass) {
  using A = accumulate_t<T>;
  const auto& [groups, rows, channels] = pass.shape;
  const int64_t chunks = pass.shape.chunks();
  const int64_t half = groups * chunks * channels;
  std::fill_n(pass.workspace, 2 * half, A(0));
  std::vector<A> shift(groups * channels);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; ++c) {
      shift[g * channels + c] = A(pass.input[g * rows * channels + c]);
    }
  }
  for_each_chunk(pass.shape, Order::kForwards,
                 [&](int64_t g, int64_t row, int64_t count, int64_t chunk) {
                   A* sum = pass.workspace + (g * chunks + chunk) * channels;
                   moments_of(pass.input + (g * rows + row) * channels, count, channels,
                              shift.data() + g * channels, sum, sum + half);
                 });
  std::vector<A> scale(groups * channels), offset(groups * channels);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, square = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += pass.workspace[(g * chunks + chunk) * channels + c];
        square += pass.workspace[(g * chunks + chunk) * channels + c + half];
      }
      const int64_t i = g * channels + c;
      const double delta = sum / rows;
      const double spread = square / rows - delta * delta;
      // Rounding may leave a tiny negative number; NaN stays NaN.
      const double variance = spread < 0 ? 0.0 : spread;
      pass.mean[i] = A(shift[i] + delta);
      pass.variance[i] = A(variance);
      scale[i] = A(pass.weight[c] / std::sqrt(variance + pass.eps));
      offset[i] = A(pass.bias[c] - (shift[i] + delta) * scale[i]);
    }
  }
  for_each_chunk(
      pass.shape, Order::kBackwards, [&](int64_t g, int64_t row, int64_t count, int64_t) {
        const int64_t at = (g * rows + row) * channels;
        apply_to(pass.input + at, pass.residual == nullptr ? nullptr : pass.residual + at, count,
                 channels, scale.data() + g * channels, offset.data() + g * channels, pass.relu,
                 pass.output + at);
      });
}

template <class T>
void batch_norm_act_backward_cpu(const BatchNormBackward<T>& pass) {
  using A = accumulate_t<T>;
  const auto& [groups, rows, channels] = pass.shape;
  const int64_t chunks = pass.shape.chunks();
  const int64_t half = groups * chunks * channels;
  std::fill_n(pass.workspace, 2 * half, A(0));
  // With a residual and a ReLU the residual's gradient is the masked one, which saves reading the
  // output again.
  const bool relu = pass.output != nullptr;
  T* const masked = relu ? pass.grad_residual : nullptr;
  for_each_chunk(
      pass.shape, Order::kForwards, [&](int64_t g, int64_t row, int64_t count, int64_t chunk) {
        const int64_t at = (g * rows + row) * channels;
        A* sum = pass.workspace + (g * chunks + chunk) * channels;
        gradient_sums_of(pass.grad + at, pass.input + at, relu ? pass.output + at : nullptr, count,
                         channels, pass.mean + g * channels, sum, sum + half,
                         masked == nullptr ? nullptr : masked + at);
      });
  std::vector<A> a(groups * channels), b(groups * channels), d(groups * channels);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, product = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += pass.workspace[(g * chunks + chunk) * channels + c];
        product += pass.workspace[(g * chunks + chunk) * channels + c + half];
      }
      const int64_t i = g * channels + c;
      const double inverse = 1.0 / std::sqrt(pass.variance[i] + pass.eps);
      pass.sums[i] = A(sum);
      pass.sums[groups * channels + i] = A(product * inverse);
      a[i] = A(pass.weight[c] * inverse);
      b[i] = A(pass.weight[c] * inverse * inverse * inverse * product / rows);
      d[i] = A(pass.weight[c] * inverse * sum / rows);
    }
  }
  for_each_chunk(
      pass.shape, Order::kBackwards, [&](int64_t g, int64_t row, int64_t count, int64_t) {
        const int64_t at = (g * rows + row) * channels, i = g * channels;
        const T* grad = masked == nullptr ? pass.grad : masked;
        const T* output = masked == nullptr && relu ? pass.output + at : nullptr;
        gradient_apply_to(grad + at, pass.input + at, output, count, channels, pass.mean + i,
                          a.data() + i, b.data() + i, d.data() + i, pass.grad_input + at);
        if (pass.grad_residual != nullptr && !relu) {
          std::copy_n(pass.grad + at, count * channels, pass.grad_residual + at);
        }
      });
}

#define PLACKET_INSTANTIATE(T)                                  \
  template void batch_norm_act_cpu(const BatchNormForward<T>&); \
  template void batch_norm_act_backward_cpu(const BatchNormBackward<T>&)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

}  // namespace placket
