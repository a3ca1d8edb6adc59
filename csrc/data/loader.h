#pragma once

#include <cstdint>
#include <memory>

#include "data/batch.h"
#include "data/image_list.h"
#include "data/label_table.h"
#include "data/sampler.h"

namespace placket {

struct LoaderConfig {
  Preprocess preprocess;
  Augment augment;
  uint64_t seed = 0;         // of the augmentation
  bool keep_pixels = false;  // fill Batch::pixels
  int64_t threads = 2;
  int64_t prefetch = 2;  // finished batches that may wait
};

// Reads, decodes and prepares batches on its own threads; the order and the bits of what next()
// returns depend on neither their number nor their speed. No Python, no lock held while decoding.
class Loader {
 public:
  Loader(std::shared_ptr<const ImageList> images,
         std::shared_ptr<const LabelTable> labels /* may be null */,
         std::shared_ptr<const BatchSource> source, const LoaderConfig& config);
  ~Loader();

  // The next call of next() returns this step's batch. Steps count over epochs.
  void seek(int64_t step);
  // Blocks; throws std::runtime_error with file and cause when an image of this batch cannot be
  // read.
  Batch next();
  // Seconds next() has waited since the loader was made.
  double waited() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace placket
