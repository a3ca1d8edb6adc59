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

template <Filter kFilter>
ResampleAxis make_axis(const AxisOfJob& in) {
  const int64_t box_size = in.box_end - in.box_begin;
  ResampleAxis axis;
  axis.size = in.size;
  axis.most = FilterTaps<kFilter>::most(box_size, in.resized);
  axis.begin.resize(in.size);
  axis.count.resize(in.size);
  axis.weights.resize(in.size * axis.most);
  for (int64_t i = 0; i < in.size; ++i) {
    FilterTaps<kFilter> taps(box_size, in.resized, in.first + (in.flip ? in.size - 1 - i : i));
    taps.clip(-in.box_begin, in.image_size - in.box_begin);
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

ResampleAxis make_axis(Filter filter, const AxisOfJob& in) {
  switch (filter) {
    case Filter::kBox:
      return make_axis<Filter::kBox>(in);
    case Filter::kBilinear:
      return make_axis<Filter::kBilinear>(in);
    case Filter::kBicubic:
      return make_axis<Filter::kBicubic>(in);
    case Filter::kLanczos:
      return make_axis<Filter::kLanczos>(in);
  }
  std::abort();
}

}  // namespace

std::pair<ResampleAxis, ResampleAxis> resample_axes(const ResampleJob& job, int64_t height,
                                                    int64_t width) {
  return {make_axis(job.filter, {job.x0, job.x1, job.image_width, job.resized_width, job.left,
                                 width, job.flip}),
          make_axis(job.filter, {job.y0, job.y1, job.image_height, job.resized_height, job.top,
                                 height, false})};
}

}  // namespace placket
