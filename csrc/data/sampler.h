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
  // Whether an image may stand where one was drawn for this value of an attribute.
  virtual bool serves(int64_t /*image*/, int64_t /*attribute*/, int64_t /*value*/) const {
    return true;
  }
};

struct TripletSamplerConfig {
  uint64_t seed = 0;
  int64_t batch = 16;         // triplets a step, over all ranks
  int64_t triplets = 100000;  // an epoch; what is left over after the last full batch is not drawn
  // How the negative is drawn. true, as ASEN++ and RPF do: a value other than the anchor's, uniform
  // over values, then an image uniform within it. false, as ASEN does: uniform over all images
  // listed under another value, so that frequent values come more often.
  bool negative_by_value = true;
  // No negative that also carries the anchor's value (multi-label sets). The rules above then hold
  // over what is left: values uniform over those with an image left, images uniform over those
  // left.
  bool exclude_shared = false;
  // Whether a value with one image can be the anchor's: the positive is then the same image, which
  // augmentation makes another view. Otherwise such a value serves as a negative only.
  bool single_views = false;
  int64_t rank = 0;
  int64_t world_size = 1;  // divides batch; the ranks' rows together are those of one rank
};

// Triplets of one attribute each: the attribute is uniform, then the anchor's value uniform over
// those with two images, anchor and positive uniform within it without replacement, then the
// negative. Equal to the references' rules where every value has two images; values with none are
// never drawn.
// Attributes with fewer than two values that can serve (one with two images, one more with an
// image) are left out; if none remains: an error that names them.
std::unique_ptr<BatchSource> make_triplet_source(std::shared_ptr<const LabelTable> labels,
                                                 const TripletSamplerConfig& config);

struct ClassSamplerConfig {
  uint64_t seed = 0;
  int64_t classes = 16;         // P, values a step, over all ranks
  int64_t images_of_class = 4;  // K
  int64_t steps = 0;            // an epoch; 0: as many as the split's images fill
  // The attribute whose values are the classes, an identity for example; -1 draws one for each
  // step, uniform over those with P values.
  int64_t attribute = -1;
  // Images a value must have to be drawn. Where it has fewer than K, all of them come before any
  // comes again.
  int64_t least_images = 2;
  // An attribute, not the classes' own, whose values share the K images evenly: of two domains K/2
  // each. Of those that it has a class takes as many of each, give or take one, so that a class of
  // one value gives all K of that. The first value of an image counts, and those without any have
  // one of their own; K must be a multiple of the number of values that occur. -1: none.
  int64_t balance = -1;
  int64_t rank = 0;
  int64_t world_size = 1;  // divides classes; the ranks' rows together are those of one rank
};
// P x K batches: P values of one attribute, uniform without replacement, and K images of each, next
// to each other, uniform without replacement; with `balance` within each of its values, the images
// of the lower value first. An error names the attribute where it has fewer than P values with
// enough images.
std::unique_ptr<BatchSource> make_class_source(std::shared_ptr<const LabelTable> labels,
                                               const ClassSamplerConfig& config);

struct ImageSamplerConfig {
  uint64_t seed = 0;
  int64_t batch = 48;     // images a step, over all ranks
  bool shuffle = true;    // a new permutation each epoch; otherwise in order, for evaluation
  bool drop_last = true;  // otherwise the last batch may be smaller, or empty on some ranks
  int64_t rank = 0;
  int64_t world_size = 1;  // divides batch
};
// Every image once an epoch, with no attribute role.
std::unique_ptr<BatchSource> make_image_source(int64_t images, const ImageSamplerConfig& config);

// Every row of another source `copies` times, next to each other, so that roles stay together. Each
// copy has a position of its own, hence its own augmentation; one copy is the source itself.
std::shared_ptr<BatchSource> make_copied_source(std::shared_ptr<BatchSource> source,
                                                int64_t copies);

}  // namespace placket
