#include "kernels/region_box.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"
#include "kernels/region_box_steps.h"

namespace placket {
namespace {

constexpr int64_t kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Extremes {
  std::vector<float> least, greatest;

  explicit Extremes(int64_t columns) : least(columns, kInfinity), greatest(columns, -kInfinity) {}
};

// One row of the upsampled map, a blend of two rows that are already as wide as the view: updates
// the columns' extremes and returns the row's greatest value. `columns` is a multiple of kLanes.
PLACKET_SIMD float blend_rows(const float* low, float low_weight, const float* high,
                              float high_weight, int64_t columns, float* least, float* greatest) {
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -kInfinity);
  for (int64_t x = 0; x < columns; x += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float value = blend(low[x + l], low_weight, high[x + l], high_weight);
      least[x + l] = value < least[x + l] ? value : least[x + l];
      greatest[x + l] = value > greatest[x + l] ? value : greatest[x + l];
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  return *std::max_element(lanes, lanes + kLanes);
}

// What all maps of a call share, and the buffers of one thread.
class BoxFinder {
 public:
  explicit BoxFinder(const RegionBox& in)
      : in_(in),
        columns_((in.view + kLanes - 1) / kLanes * kLanes),
        wide_(in.height * columns_),
        row_greatest_(in.view) {
    for (int64_t i = 0; i < in.view; ++i) {
      down_.emplace_back(in.height, in.view, i);
      right_.emplace_back(in.width, in.view, i);
    }
    // Columns past the view repeat its last one, which changes no extreme.
    while (int64_t(right_.size()) < columns_) right_.push_back(right_.back());
  }

  void find(const float* attention, const int64_t* size, int64_t* box) {
    int64_t left = 0, top = 0, right = in_.view, bottom = in_.view;
    const bool finite = std::all_of(attention, attention + in_.height * in_.width,
                                    [](float value) { return std::isfinite(value); });
    Extremes extremes(columns_);
    if (finite) upsample(attention, extremes);
    const float least = *std::min_element(extremes.least.begin(), extremes.least.end());
    const float greatest = *std::max_element(extremes.greatest.begin(), extremes.greatest.end());
    const Kept kept{least, greatest - least, in_.threshold};
    if (finite && kept.usable()) {
      span(row_greatest_, kept, top, bottom);
      span(extremes.greatest, kept, left, right);
    }
    write_box(left, top, right, bottom, in_.view, in_.squashed, size, box);
  }

 private:
  void upsample(const float* attention, Extremes& extremes) {
    for (int64_t y = 0; y < in_.height; ++y) {
      const float* row = attention + y * in_.width;
      for (int64_t x = 0; x < columns_; ++x) {
        const LinearTap& tap = right_[x];
        wide_[y * columns_ + x] =
            blend(row[tap.low], tap.low_weight, row[tap.high], tap.high_weight);
      }
    }
    for (int64_t y = 0; y < in_.view; ++y) {
      const LinearTap& tap = down_[y];
      row_greatest_[y] =
          blend_rows(&wide_[tap.low * columns_], tap.low_weight, &wide_[tap.high * columns_],
                     tap.high_weight, columns_, extremes.least.data(), extremes.greatest.data());
    }
  }

  // The smallest range with every kept entry. The greatest value of the map is always kept.
  void span(const std::vector<float>& greatest, const Kept& kept, int64_t& begin, int64_t& end) {
    begin = 0;
    end = in_.view;
    while (!kept(greatest[begin])) ++begin;
    while (!kept(greatest[end - 1])) --end;
  }

  const RegionBox& in_;
  int64_t columns_;
  std::vector<LinearTap> down_, right_;
  std::vector<float> wide_;  // [height, columns_]: the map as wide as the view
  std::vector<float> row_greatest_;
};

}  // namespace

void region_box_cpu(const RegionBox& in, int64_t* boxes) {
  parallel_for(0, in.maps, 4, [&](int64_t first, int64_t last) {
    BoxFinder finder(in);
    for (int64_t i = first; i < last; ++i) {
      finder.find(in.attention + i * in.height * in.width, in.sizes + 2 * i, boxes + 4 * i);
    }
  });
}

}  // namespace placket
