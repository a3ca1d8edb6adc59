#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/resample_axis.h"
#include "kernels/resample_passes_plain.h"
#include "kernels/resample_taps.h"

namespace placket {

// Rows of the horizontal pass are made when they are first needed and kept in a ring that just
// holds one output row's taps, so that the vertical pass reads them from the nearest cache.
template <class Passes, class Write>
void horizontal_then_vertical(const ResampleJob& job, const Passes& passes,
                              const ResampleAxis& columns, const ResampleAxis& rows,
                              const Write& write) {
  const int64_t image_row = job.image_width * kChannels;
  const uint8_t* image_end = job.image + job.image_height * image_row;
  const int64_t bytes = columns.size * kChannels;
  const int64_t ring_row = bytes + Passes::kSpill;
  std::vector<uint8_t> ring(rows.most * ring_row), out(bytes), last_row;
  std::vector<const uint8_t*> taps(rows.most);
  int64_t done = 0;  // rows of the image that have been through the horizontal pass
  for (int64_t y = 0; y < rows.size; ++y) {
    const int64_t begin = rows.begin[y], end = begin + rows.count[y];
    for (done = std::max(done, begin); done < end; ++done) {
      const uint8_t* row = job.image + done * image_row;
      if (image_end - row < passes.reach()) {
        // Vectors would read past the image: they get a padded copy.
        last_row.resize(passes.reach());
        std::copy(row, image_end, last_row.begin());
        row = last_row.data();
      }
      passes.horizontal(row, &ring[(done % rows.most) * ring_row]);
    }
    for (int64_t r = begin; r < end; ++r) taps[r - begin] = &ring[(r % rows.most) * ring_row];
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
    passes.horizontal(middle.data(), out.data());
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
