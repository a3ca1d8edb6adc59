#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "data/augment.h"
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
  // What Batch::images shows: "crop", the images; "segmented", of each the pixels of its mask alone
  // (segment_input in data/picture.h), after every augmentation; "both": "crop", and "segmented" of
  // the same crop in Batch::segmented. All but "crop" need masks.
  std::string views = "crop";
  int64_t threads = 2;
  int64_t prefetch = 2;  // batches in work or finished ahead of next()
  // Whether an image that cannot be read is replaced by the next image of the list, from its end on
  // from the beginning, that can be read and carries the value the row was drawn for, rather than
  // being an error. The replacement depends on the files alone.
  bool skip_unreadable = false;
  bool pin_memory = false;  // of Batch::images and pixels, for copies to a GPU beside its work
};

// Reads, decodes and prepares batches on its own threads, one image at a time, so that a batch is
// made by all of them. The order and the bits of what next() returns depend on neither their number
// nor their speed. No Python, no lock held while decoding. next() and seek() are for one thread.
//
// Of images with resident pixels the threads only choose the frames; next() makes the batch on the
// pixels' device, in torch's current stream, with every bit of the other way. Preprocessing and
// augmentation that the device has no kernel for are a ValueError (check_resident).
//
// The fallback decoder may need a lock (the GIL) that the destroying thread holds: whoever sets one
// gives the lock up before destroying a loader.
class Loader {
 public:
  Loader(std::shared_ptr<const ImageList> images,
         std::shared_ptr<const LabelTable> labels /* may be null */,
         std::shared_ptr<const BatchSource> source, const LoaderConfig& config);
  // Returns once each thread has finished the image it is at.
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next call of next() returns this step's batch. Steps count over epochs.
  void seek(int64_t step);
  // Blocks; throws std::runtime_error with file and cause when an image of this batch cannot be
  // read (the first such row's). The call after that returns the next step's batch.
  Batch next();
  // Seconds next() has waited since the loader was made.
  double waited() const;
  // The images that were found unreadable and replaced, by index, with the cause.
  std::map<int64_t, std::string> skipped() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace placket
