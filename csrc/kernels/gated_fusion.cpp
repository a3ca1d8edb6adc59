#include "kernels/gated_fusion.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/bfloat16.h"
#include "base/parallel.h"
#include "base/simd.h"
#include "kernels/gated_fusion_row.h"
#include "kernels/lanes.h"

// A thread takes whole rows. A row is widened and gated once, into a scratch that stays in the
// first-level cache; its sums run in 32-byte lanes, whatever the instruction set; then it is read
// from the scratch.
namespace placket {
namespace {

// Rows below this many elements are not worth a second thread.
constexpr int64_t kElementsPerThread = 1 << 13;

int64_t row_grain(int64_t dims) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(dims, 1));
}

template <class A>
inline __attribute__((always_inline)) A total(const Lanes<A>& lanes) {
  A sum = 0;
  for (int64_t l = 0; l < kLanes<A>; ++l) sum += lanes[l];
  return sum;
}

template <class A>
inline __attribute__((always_inline)) A sigmoid(A x) {
  return sigmoid_from(x, exp_of(x < A(0) ? x : -x));
}

template <class T, class A>
inline __attribute__((always_inline)) void parts(
    const T* __restrict gate_logits, const T* __restrict image, const T* __restrict text,
    const T* __restrict image_clip, const T* __restrict text_clip, A selection, int64_t dims,
    A* __restrict of_image, A* __restrict of_text) {
  for (int64_t d = 0; d < dims; ++d) {
    const A gate = sigmoid(A(gate_logits[d]));
    of_image[d] = image_part(gate, selection, A(image[d]), A(image_clip[d]));
    of_text[d] = text_part(gate, selection, A(text[d]), A(text_clip[d]));
  }
}

template <class A>
inline __attribute__((always_inline)) FusionSums<A> sums(const A* of_image, const A* of_text,
                                                         int64_t dims) {
  Lanes<A> square = {}, image = {}, text = {};
  int64_t d = 0;
  for (; d + kLanes<A> <= dims; d += kLanes<A>) {
    Lanes<A> i, t;
    memcpy(&i, of_image + d, sizeof i);
    memcpy(&t, of_text + d, sizeof t);
    square += (i + t) * (i + t);
    image += i * i;
    text += t * t;
  }
  FusionSums<A> all;
  for (; d < dims; ++d) all.add(of_image[d], of_text[d]);
  all.square += total<A>(square);
  all.image += total<A>(image);
  all.text += total<A>(text);
  return all;
}

template <class T, class A>
inline __attribute__((always_inline)) void scaled_sum(const A* __restrict of_image,
                                                      const A* __restrict of_text, A scale,
                                                      int64_t dims, T* __restrict query) {
  for (int64_t d = 0; d < dims; ++d) query[d] = T((of_image[d] + of_text[d]) * scale);
}

// The scratch of a row's gradient, [dims] each.
template <class A>
struct GradientScratch {
  A* gate;
  A* x;  // then its gradient
  A* grad;
  A* between;
};

template <class T, class A>
inline __attribute__((always_inline)) void gate_and_sum(
    const T* __restrict gate_logits, const T* __restrict image, const T* __restrict text,
    const T* __restrict image_clip, const T* __restrict text_clip, const T* __restrict of_query,
    A selection, int64_t dims, A* __restrict gate, A* __restrict x, A* __restrict grad,
    A* __restrict between) {
  for (int64_t d = 0; d < dims; ++d) {
    const A g = sigmoid(A(gate_logits[d]));
    gate[d] = g;
    x[d] = image_part(g, selection, A(image[d]), A(image_clip[d])) +
           text_part(g, selection, A(text[d]), A(text_clip[d]));
    grad[d] = A(of_query[d]);
    between[d] = A(text_clip[d]) - A(image_clip[d]);
  }
}

template <class A>
inline __attribute__((always_inline)) FusionGradientSums<A> gradient_sums(
    const GradientScratch<A>& scratch, int64_t dims) {
  Lanes<A> square = {}, along = {}, between_grad = {}, between_x = {};
  int64_t d = 0;
  for (; d + kLanes<A> <= dims; d += kLanes<A>) {
    Lanes<A> x, grad, between;
    memcpy(&x, scratch.x + d, sizeof x);
    memcpy(&grad, scratch.grad + d, sizeof grad);
    memcpy(&between, scratch.between + d, sizeof between);
    square += x * x;
    along += x * grad;
    between_grad += between * grad;
    between_x += between * x;
  }
  FusionGradientSums<A> all;
  for (; d < dims; ++d) all.add(scratch.x[d], scratch.grad[d], scratch.between[d]);
  all.square += total<A>(square);
  all.along += total<A>(along);
  all.between_grad += total<A>(between_grad);
  all.between_x += total<A>(between_x);
  return all;
}

template <class T, class A>
inline __attribute__((always_inline)) void gated_gradients(
    const T* __restrict image, const T* __restrict text, const A* __restrict gate,
    const A* __restrict of_x, int64_t dims, T* __restrict of_gate, T* __restrict of_image,
    T* __restrict of_text) {
  for (int64_t d = 0; d < dims; ++d) {
    const A g = gate[d], rest = A(1) - g;
    of_gate[d] = T(of_x[d] * (A(image[d]) - A(text[d])) * g * rest);
    of_image[d] = T(of_x[d] * g);
    of_text[d] = T(of_x[d] * rest);
  }
}

template <class T, class A>
inline __attribute__((always_inline)) void selected_gradients(const A* __restrict of_x, A selection,
                                                              int64_t dims,
                                                              T* __restrict of_image_clip,
                                                              T* __restrict of_text_clip) {
  for (int64_t d = 0; d < dims; ++d) {
    of_image_clip[d] = T(of_x[d] * (A(1) - selection));
    of_text_clip[d] = T(of_x[d] * selection);
  }
}

// Rows [0, 2 dims) of the scratch forward, [0, 4 dims) backward.
template <class T, class A>
inline __attribute__((always_inline)) void fuse(const GatedFusion<T>& in, int64_t row, A* scratch,
                                                T* query, T* image_share) {
  const int64_t at = row * in.dims;
  A *of_image = scratch, *of_text = scratch + in.dims;
  parts(in.gate_logits + at, in.image + at, in.text + at, in.image_clip + at, in.text_clip + at,
        sigmoid(A(in.selection_logits[row])), in.dims, of_image, of_text);
  const FusionSums<A> all = sums(of_image, of_text, in.dims);
  scaled_sum(of_image, of_text, inverse_length(all.square), in.dims, query + at);
  image_share[row] = T(all.image_share());
}

template <class T, class A>
inline __attribute__((always_inline)) void fuse_backward(const GatedFusion<T>& in, int64_t row,
                                                         const T* grad, A* scratch,
                                                         const GatedFusionGradients<T>& out) {
  const int64_t dims = in.dims, at = row * dims;
  const GradientScratch<A> s = {scratch, scratch + dims, scratch + 2 * dims, scratch + 3 * dims};
  const A selection = sigmoid(A(in.selection_logits[row]));
  gate_and_sum(in.gate_logits + at, in.image + at, in.text + at, in.image_clip + at,
               in.text_clip + at, grad + at, selection, dims, s.gate, s.x, s.grad, s.between);
  const FusionGradient<A> gradient(gradient_sums(s, dims), selection);
  for (int64_t d = 0; d < dims; ++d) s.x[d] = gradient.of(s.x[d], s.grad[d]);
  gated_gradients(in.image + at, in.text + at, s.gate, s.x, dims, out.gate_logits + at,
                  out.image + at, out.text + at);
  out.selection_logits[row] = T(gradient.selection_logit);
  if (out.image_clip != nullptr) {
    selected_gradients(s.x, selection, dims, out.image_clip + at, out.text_clip + at);
  }
}

#define PLACKET_LEAVES(T, A)                                                                \
  PLACKET_SIMD void fuse_row(const GatedFusion<T>& in, int64_t row, A* scratch, T* query,   \
                             T* image_share) {                                              \
    fuse(in, row, scratch, query, image_share);                                             \
  }                                                                                         \
  PLACKET_SIMD void fuse_row_backward(const GatedFusion<T>& in, int64_t row, const T* grad, \
                                      A* scratch, const GatedFusionGradients<T>& out) {     \
    fuse_backward(in, row, grad, scratch, out);                                             \
  }

PLACKET_LEAVES(float, float)
PLACKET_LEAVES(double, double)
PLACKET_LEAVES(BFloat16, float)
#undef PLACKET_LEAVES

}  // namespace

template <class T>
void gated_fusion_cpu(const GatedFusion<T>& in, T* query, T* image_share) {
  parallel_for(0, in.rows, row_grain(in.dims), [&](int64_t first, int64_t last) {
    std::vector<accumulate_t<T>> scratch(2 * in.dims);
    for (int64_t row = first; row < last; ++row) {
      fuse_row(in, row, scratch.data(), query, image_share);
    }
  });
}

template <class T>
void gated_fusion_backward_cpu(const GatedFusion<T>& in, const T* grad,
                               const GatedFusionGradients<T>& out) {
  parallel_for(0, in.rows, row_grain(in.dims), [&](int64_t first, int64_t last) {
    std::vector<accumulate_t<T>> scratch(4 * in.dims);
    for (int64_t row = first; row < last; ++row) {
      fuse_row_backward(in, row, grad, scratch.data(), out);
    }
  });
}

#define PLACKET_INSTANTIATE(T)                                                \
  template void gated_fusion_cpu<T>(const GatedFusion<T>&, T*, T*);           \
  template void gated_fusion_backward_cpu<T>(const GatedFusion<T>&, const T*, \
                                             const GatedFusionGradients<T>&)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

}  // namespace placket
