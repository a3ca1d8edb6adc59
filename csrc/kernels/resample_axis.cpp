#include "kernels/resample_axis.h"

#include <algorithm>
#include <cstdlib>

#include "kernels/resample_taps.h"

namespace placket {
namespace {

// One axis of a job: a box resized as a whole to `resized`, of which `size` places from `first` on
// are written, mirrored with `flip`.
struct AxisOfJob {
  int64_t box_begin, box_end, image_size, resized, first, size;
  bool flip;
};

// Of output coordinate i.
template <Filter kFilter>
FilterTaps<kFilter> taps_of(const AxisOfJob& in, int64_t i) {
  FilterTaps<kFilter> taps(in.box_end - in.box_begin, in.resized,
                           in.first + (in.flip ? in.size - 1 - i : i));
  taps.clip(-in.box_begin, in.image_size - in.box_begin);
  return taps;
}

template <Filter kFilter>
ResampleAxis make_axis(const AxisOfJob& in) {
  ResampleAxis axis;
  axis.size = in.size;
  axis.most = FilterTaps<kFilter>::most(in.box_end - in.box_begin, in.resized);
  axis.begin.resize(in.size);
  axis.count.resize(in.size);
  axis.weights.resize(in.size * axis.most);
  for (int64_t i = 0; i < in.size; ++i) {
    const auto taps = taps_of<kFilter>(in, i);
    const int64_t count = taps.end() - taps.begin();
    if (count == 0) continue;
    const int64_t begin = taps.begin() + in.box_begin;
    for (int64_t t = 0; t < count; ++t) {
      axis.weights[i * axis.most + t] = taps.weight(taps.begin() + t);
    }
    axis.begin[i] = begin;
    axis.count[i] = count;
    axis.source_begin = axis.source_end == 0 ? begin : std::min(axis.source_begin, begin);
    axis.source_end = std::max(axis.source_end, begin + count);
  }
  return axis;
}

// From the first to past the last source of an axis.
template <Filter kFilter>
std::pair<int64_t, int64_t> sources_of(const AxisOfJob& in) {
  const auto a = taps_of<kFilter>(in, 0), b = taps_of<kFilter>(in, in.size - 1);
  return {std::min(a.begin(), b.begin()) + in.box_begin, std::max(a.end(), b.end()) + in.box_begin};
}

// Calls make with a filter as a constant.
template <class Make>
auto with_filter(Filter filter, const Make& make) {
  switch (filter) {
    case Filter::kBox:
      return make.template operator()<Filter::kBox>();
    case Filter::kBilinear:
      return make.template operator()<Filter::kBilinear>();
    case Filter::kBicubic:
      return make.template operator()<Filter::kBicubic>();
    case Filter::kLanczos:
      return make.template operator()<Filter::kLanczos>();
  }
  std::abort();
}

AxisOfJob columns_of(const ResampleJob& job, int64_t width) {
  return {job.x0, job.x1, job.image_width, job.resized_width, job.left, width, job.flip};
}

AxisOfJob rows_of(const ResampleJob& job, int64_t height) {
  return {job.y0, job.y1, job.image_height, job.resized_height, job.top, height, false};
}

}  // namespace

std::array<int64_t, 4> resample_sources(const ResampleJob& job, int64_t height, int64_t width) {
  return with_filter(job.filter, [&]<Filter kFilter>() {
    const auto [x0, x1] = sources_of<kFilter>(columns_of(job, width));
    const auto [y0, y1] = sources_of<kFilter>(rows_of(job, height));
    return std::array<int64_t, 4>{x0, y0, x1, y1};
  });
}

std::pair<ResampleAxis, ResampleAxis> resample_axes(const ResampleJob& job, int64_t height,
                                                    int64_t width) {
  return with_filter(job.filter, [&]<Filter kFilter>() {
    return std::pair(make_axis<kFilter>(columns_of(job, width)),
                     make_axis<kFilter>(rows_of(job, height)));
  });
}

}  // namespace placket
