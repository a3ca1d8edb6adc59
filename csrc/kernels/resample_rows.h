#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/resample_axis.h"
#include "kernels/resample_passes_plain.h"
#include "kernels/resample_taps.h"

namespace placket {

// Rows of the horizontal pass are made when they are first needed, with a few after them, and kept
// in a ring that just holds one output row's taps and these few, so that the vertical pass reads
// them from the nearest cache.
template <class Passes, class Write>
void horizontal_then_vertical(const ResampleJob& job, const Passes& passes,
                              const ResampleAxis& columns, const ResampleAxis& rows,
                              const Write& write) {
  const int64_t image_row = job.image_width * kChannels;
  const uint8_t* image_end = job.image + job.image_height * image_row;
  const int64_t bytes = columns.size * kChannels;
  const int64_t ring_row = bytes + Passes::kSpill;
  constexpr int64_t kTogether = Passes::kTogether;
  const int64_t ring_rows = rows.most + kTogether - 1;
  std::vector<uint8_t> ring(ring_rows * ring_row), out(bytes), last_row;
  const auto slot = [&](int64_t row) { return &ring[(row % ring_rows) * ring_row]; };
  const auto may_read = [&](int64_t row) {
    return image_end - (job.image + row * image_row) >= passes.reach();
  };
  std::vector<const uint8_t*> taps(rows.most);
  int64_t done = 0;  // rows of the image that have been through the horizontal pass
  for (int64_t y = 0; y < rows.size; ++y) {
    const int64_t begin = rows.begin[y], end = begin + rows.count[y];
    done = std::max(done, begin);
    while (done < end) {
      const uint8_t* from[kTogether];
      uint8_t* to[kTogether];
      const bool together = done + kTogether <= rows.source_end && may_read(done + kTogether - 1);
      const int64_t count = together ? kTogether : 1;
      for (int64_t r = 0; r < count; ++r) {
        from[r] = job.image + (done + r) * image_row;
        to[r] = slot(done + r);
      }
      if (together) {
        passes.template horizontal<kTogether>(from, to);
      } else {
        if (!may_read(done)) {
          // Vectors would read past the image: they get a padded copy.
          last_row.resize(passes.reach());
          std::copy(from[0], image_end, last_row.begin());
          from[0] = last_row.data();
        }
        passes.template horizontal<1>(from, to);
      }
      done += count;
    }
    for (int64_t r = begin; r < end; ++r) taps[r - begin] = slot(r);
    Passes::vertical({taps.data(), &rows.weights[y * rows.most], end - begin}, 0, bytes,
                     out.data());
    write(y, out.data());
  }
}

template <class Passes, class Write>
void vertical_then_horizontal(const ResampleJob& job, const Passes& passes,
                              const ResampleAxis& columns, const ResampleAxis& rows,
                              const Write& write) {
  const int64_t image_row = job.image_width * kChannels;
  std::vector<uint8_t> middle(std::max(image_row, passes.reach()));
  std::vector<uint8_t> out(columns.size * kChannels + Passes::kSpill);
  std::vector<const uint8_t*> taps(rows.most);
  for (int64_t y = 0; y < rows.size; ++y) {
    for (int64_t t = 0; t < rows.count[y]; ++t) {
      taps[t] = job.image + (rows.begin[y] + t) * image_row;
    }
    Passes::vertical({taps.data(), &rows.weights[y * rows.most], rows.count[y]},
                     columns.source_begin * kChannels, columns.source_end * kChannels,
                     middle.data());
    const uint8_t* const from[] = {middle.data()};
    uint8_t* const to[] = {out.data()};
    passes.template horizontal<1>(from, to);
    write(y, out.data());
  }
}

// Calls write(y, row) with every row of the window, top to bottom; row has 3 bytes a column.
template <class Passes, class Write>
void resample_rows(const ResampleJob& job, const ResampleAxis& columns, const ResampleAxis& rows,
                   const Write& write) {
  const Passes passes(columns);
  if (vertical_first(job.y1 - job.y0, job.x1 - job.x0, job.resized_height, job.resized_width)) {
    vertical_then_horizontal(job, passes, columns, rows, write);
  } else {
    horizontal_then_vertical(job, passes, columns, rows, write);
  }
}

}  // namespace placket
