// One block takes one map. Its threads walk over the view twice and blend each value anew from the
// map, which stays in the nearest cache: first for the extremes, then for the kept area. Both meet
// by warp shuffles and one value of each warp in shared memory; minima are maxima of the negated.
#include "base/launch.cuh"
#include "kernels/region_box.h"
#include "kernels/region_box_steps.h"

namespace placket {
namespace {

constexpr int kRows = 32;  // threads down; a warp across

// The greatest of all threads' values; every thread gets it.
template <class T>
__device__ T block_max(T value) {
  __shared__ T of_warp[kRows];
  value = warp_max(value);
  if (threadIdx.x == 0) of_warp[threadIdx.y] = value;
  __syncthreads();
  value = warp_max(of_warp[threadIdx.x]);
  __syncthreads();
  return value;
}

// Calls f(x, y, value) with this thread's pixels of the upsampled map.
template <class F>
__device__ void for_each_value(const RegionBox& in, const float* attention, const F& f) {
  for (int64_t x = threadIdx.x; x < in.view; x += kWarpSize) {
    const LinearTap right(in.width, in.view, x);
    for (int64_t y = threadIdx.y; y < in.view; y += kRows) {
      const LinearTap down(in.height, in.view, y);
      const float* low = attention + down.low * in.width;
      const float* high = attention + down.high * in.width;
      f(x, y,
        blend(blend(low[right.low], right.low_weight, low[right.high], right.high_weight),
              down.low_weight,
              blend(high[right.low], right.low_weight, high[right.high], right.high_weight),
              down.high_weight));
    }
  }
}

__global__ void region_box_kernel(RegionBox in, int64_t* boxes) {
  static_assert(kRows == kWarpSize, "block_max reads one value of each warp with one warp");
  const float* attention = in.attention + blockIdx.x * in.height * in.width;

  int not_finite = 0;
  for (int64_t i = threadIdx.y * kWarpSize + threadIdx.x; i < in.height * in.width;
       i += kRows * kWarpSize) {
    if (!(fabsf(attention[i]) <= FLT_MAX)) not_finite = 1;
  }
  not_finite = block_max(not_finite);

  float greatest = -INFINITY, negated_least = -INFINITY;
  for_each_value(in, attention, [&](int64_t, int64_t, float value) {
    greatest = fmaxf(greatest, value);
    negated_least = fmaxf(negated_least, -value);
  });
  greatest = block_max(greatest);
  negated_least = block_max(negated_least);

  const Kept kept{-negated_least, greatest + negated_least, in.threshold};
  int64_t left = 0, top = 0, right = in.view, bottom = in.view;
  if (!not_finite && kept.usable()) {
    int negated_left = INT_MIN, negated_top = INT_MIN, last_x = -1, last_y = -1;
    for_each_value(in, attention, [&](int64_t x, int64_t y, float value) {
      if (!kept(value)) return;
      negated_left = max(negated_left, -int(x));
      negated_top = max(negated_top, -int(y));
      last_x = max(last_x, int(x));
      last_y = max(last_y, int(y));
    });
    left = -block_max(negated_left);
    top = -block_max(negated_top);
    right = block_max(last_x) + 1;
    bottom = block_max(last_y) + 1;
  }
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    write_box(left, top, right, bottom, in.view, in.squashed, in.sizes + 2 * blockIdx.x,
              boxes + 4 * blockIdx.x);
  }
}

}  // namespace

const char* launch_region_box(const RegionBox& in, int64_t* boxes, Stream stream) {
  if (in.maps == 0) return nullptr;
  if (in.maps > INT32_MAX) return "more than 2^31 maps";
  region_box_kernel<<<unsigned(in.maps), dim3(kWarpSize, kRows), 0, stream>>>(in, boxes);
  return launch_error();
}

}  // namespace placket
