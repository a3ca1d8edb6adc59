#pragma once

#include <cstdint>
#include <memory>

#include "data/batch.h"
#include "data/label_table.h"

namespace placket {

// What a step is made of. plan() is a pure function of the step, so any thread may ask for any
// step, and resuming is asking for the next one.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual BatchPlan plan(int64_t step) const = 0;
  virtual int64_t steps_per_epoch() const = 0;
};

struct TripletSamplerConfig {
  uint64_t seed = 0;
  int64_t batch = 16;         // triplets a step, over all ranks
  int64_t triplets = 100000;  // an epoch
  bool negative_by_value =
      true;  // ASEN++, RPF: value uniform, then image uniform. Otherwise ASEN: image uniform
  bool exclude_shared =
      false;  // no negative that also carries the anchor's value (multi-label sets)
  int64_t rank = 0;
  int64_t world_size = 1;  // divides batch; the ranks' rows together are those of one rank
};
// Attributes with fewer than two values that can serve (one with two images, one more with an
// image) are left out; if none remains: an error that names them.
std::unique_ptr<BatchSource> make_triplet_source(std::shared_ptr<const LabelTable> labels,
                                                 const TripletSamplerConfig& config);

struct ImageSamplerConfig {
  uint64_t seed = 0;
  int64_t batch = 48;   // images a step, over all ranks
  bool shuffle = true;  // a new permutation each epoch; otherwise in order, for evaluation
  bool drop_last = true;
  int64_t rank = 0;
  int64_t world_size = 1;
};
// Every image once an epoch, with no attribute role.
std::unique_ptr<BatchSource> make_image_source(int64_t images, const ImageSamplerConfig& config);

}  // namespace placket
