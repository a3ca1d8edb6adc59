// One warp takes one row: its lanes stride over the dimensions, the sums meet by shuffles, and the
// row is read a second time from cache, where gating it again costs less than keeping it. Nothing
// is shared between warps, so results do not depend on the grid.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/gated_fusion.h"
#include "kernels/gated_fusion_row.h"

namespace placket {
namespace {

constexpr int kWarps = 4;

template <class A>
__device__ A sigmoid(A x) {
  return sigmoid_from(x, exp(x < A(0) ? x : -x));
}

// What an entry of the row is made of.
template <class A>
struct Entry {
  A gate, image, text, image_clip, text_clip, selection;

  template <class T>
  __device__ Entry(const GatedFusion<T>& in, int64_t i, A selection)
      : gate(sigmoid(A(in.gate_logits[i]))),
        image(A(in.image[i])),
        text(A(in.text[i])),
        image_clip(A(in.image_clip[i])),
        text_clip(A(in.text_clip[i])),
        selection(selection) {}

  __device__ A of_image() const { return image_part(gate, selection, image, image_clip); }
  __device__ A of_text() const { return text_part(gate, selection, text, text_clip); }
  __device__ A x() const { return of_image() + of_text(); }
};

template <class T>
__global__ void gated_fusion_kernel(GatedFusion<T> in, T* query, T* image_share) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= in.rows) return;
  const A selection = sigmoid(A(in.selection_logits[row]));
  const int64_t begin = row * in.dims, end = begin + in.dims;
  FusionSums<A> sums;
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarpSize) {
    const Entry<A> entry(in, i, selection);
    sums.add(entry.of_image(), entry.of_text());
  }
  sums.square = warp_sum(sums.square);
  sums.image = warp_sum(sums.image);
  sums.text = warp_sum(sums.text);
  const A inverse = inverse_length(sums.square);
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarpSize) {
    query[i] = T(Entry<A>(in, i, selection).x() * inverse);
  }
  if (threadIdx.x == 0) image_share[row] = T(sums.image_share());
}

template <class T>
__global__ void gated_fusion_backward_kernel(GatedFusion<T> in, const T* grad,
                                             GatedFusionGradients<T> out) {
  using A = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= in.rows) return;
  const A selection = sigmoid(A(in.selection_logits[row]));
  const int64_t begin = row * in.dims, end = begin + in.dims;
  FusionGradientSums<A> sums;
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarpSize) {
    const Entry<A> entry(in, i, selection);
    sums.add(entry.x(), A(grad[i]), entry.text_clip - entry.image_clip);
  }
  sums.square = warp_sum(sums.square);
  sums.along = warp_sum(sums.along);
  sums.between_grad = warp_sum(sums.between_grad);
  sums.between_x = warp_sum(sums.between_x);
  const FusionGradient<A> gradient(sums, selection);
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarpSize) {
    const Entry<A> entry(in, i, selection);
    const A of_x = gradient.of(entry.x(), A(grad[i]));
    const A rest = A(1) - entry.gate;
    out.gate_logits[i] = T(of_x * (entry.image - entry.text) * entry.gate * rest);
    out.image[i] = T(of_x * entry.gate);
    out.text[i] = T(of_x * rest);
    if (out.image_clip != nullptr) {
      out.image_clip[i] = T(of_x * (A(1) - selection));
      out.text_clip[i] = T(of_x * selection);
    }
  }
  if (threadIdx.x == 0) out.selection_logits[row] = T(gradient.selection_logit);
}

unsigned blocks(int64_t rows) { return unsigned((rows + kWarps - 1) / kWarps); }

}  // namespace

template <class T>
const char* launch_gated_fusion(const GatedFusion<T>& in, T* query, T* image_share, Stream stream) {
  if (in.rows == 0) return nullptr;
  gated_fusion_kernel<T>
      <<<blocks(in.rows), dim3(kWarpSize, kWarps), 0, stream>>>(in, query, image_share);
  return launch_error();
}

template <class T>
const char* launch_gated_fusion_backward(const GatedFusion<T>& in, const T* grad,
                                         const GatedFusionGradients<T>& out, Stream stream) {
  if (in.rows == 0) return nullptr;
  gated_fusion_backward_kernel<T>
      <<<blocks(in.rows), dim3(kWarpSize, kWarps), 0, stream>>>(in, grad, out);
  return launch_error();
}

#define PLACKET_INSTANTIATE(T)                                                          \
  template const char* launch_gated_fusion<T>(const GatedFusion<T>&, T*, T*, Stream);   \
  template const char* launch_gated_fusion_backward<T>(const GatedFusion<T>&, const T*, \
                                                       const GatedFusionGradients<T>&, Stream)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
PLACKET_INSTANTIATE(BFloat16);
#undef PLACKET_INSTANTIATE

}  // namespace placket
