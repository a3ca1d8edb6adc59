#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/augment.h"
#include "data/batch.h"
#include "data/image_list.h"
#include "train/grad_sync.h"
#include "train/named_tensors.h"
#include "train/schedule.h"

namespace placket {

// One stage of a training, as data.
struct StageConfig {
  std::string name = "region";
  std::vector<std::string> branches = {"region"};  // which train; the others stay as they are
  std::vector<std::pair<std::string, double>> losses = {{"triplet_region", 1.0}};  // and weights
  // Of some losses the epochs in which their weight rises from 0, linearly in steps.
  std::vector<std::pair<std::string, double>> ramp_epochs;
  // Learning rates by prefix of the parameters' names; the longest that fits counts, 0 freezes.
  std::vector<std::pair<std::string, double>> rates = {{"", 5e-5}};
  Schedule schedule;
  double weight_decay = 0.0;
  bool decoupled_decay = false;  // AdamW
  int64_t epochs = 50;
  // Where BatchNorm takes its statistics: "grouped" each triplet role apart (the reference),
  // "merged" the whole batch, "frozen" the running ones.
  std::string batch_norm = "grouped";
  // Or "images": every image once an epoch; or "classes": images_of_class images of each of
  // batch / images_of_class values of one attribute; or "products": the same of products, the last
  // attribute but one, whose images are of all its domains, the last attribute, evenly.
  std::string sampler = "triplets";
  int64_t batch = 16;         // triplets or images a step, over all ranks
  int64_t triplets = 100000;  // an epoch
  int64_t images_of_class = 4;
  int64_t copies = 1;  // of every row of a batch, next to each other, each augmented anew
  bool negative_by_value = true;
  bool exclude_shared = false;
  int64_t views_per_image = 1;  // images: attributes of each image that the patch branch looks at
  // Other than 0: the last so many attributes alone learn, by what belongs to them alone in tensors
  // of the model; all else stays as it is to the bit.
  int64_t new_attributes = 0;
  // Images whose graph of the forward pass is kept at a time, the others' being computed again in
  // the backward pass; 0: all. Systems of regions and words only.
  int64_t recompute = 0;
  std::optional<int64_t> size;  // side of the inputs, other than the preprocessing's
  Augment augment;

  // Of a loss by its name; 0 where it is none of the stage's.
  double weight(const std::string& loss) const {
    for (const auto& [name, weight] : losses) {
      if (name == loss) return weight;
    }
    return 0.0;
  }
};

// What a step knows besides its batch.
struct StepContext {
  uint64_t seed = 0;
  int64_t step = 0;  // over all stages; keys random choices
  const GradSync& sync;
};

struct Loss {
  std::string name;
  double weight = 1.0;
  at::Tensor value;  // scalar, float32, unweighted
};

// A method: what its losses are for a batch and how it embeds. Holds the model's tensors, which are
// the Python module's own.
class System {
 public:
  virtual ~System() = default;

  // The model's parameters, then tensors that only training has, by name.
  virtual NamedTensors parameters() const = 0;
  virtual at::Device device() const = 0;
  // The model's running statistics.
  virtual NamedTensors buffers() const = 0;
  // Those of parameters() that are not saved with the model.
  virtual NamedTensors training_only() const = 0;

  // Fits the system to a stage; names that it does not know are errors that list the known ones.
  // Returns the parameters that train.
  virtual NamedTensors begin(const StageConfig& stage) = 0;
  // Fits the system to embedding alone, with these branches.
  virtual void begin_encoding(const std::vector<std::string>& branches) = 0;
  // Whether the stage's batches must hold Batch::pixels, in training and for encode().
  virtual bool needs_pixels() const = 0;

  // The losses of a batch on the model's device, by one forward pass. No host synchronisation.
  virtual std::vector<Loss> losses(const Batch& batch, const StepContext& context) = 0;

  // Called when the parameters have taken the step of the last losses(), for what the system moves
  // by itself and what an exception before that must leave as it was.
  virtual void stepped() {}

  // Embeddings [V, D], L2-normalised float32, of each (image, attribute) with attributes[n, k] >=
  // 0, row by row; attributes [N, K] int64 on the CPU. In evaluation mode, without gradients.
  virtual at::Tensor encode(const Batch& batch, const at::Tensor& attributes) = 0;
};

// The part of a batch that a system computes with, on the device; the plan stays.
Batch to_device(const Batch& batch, at::Device device);

// "<what>: ... must be one of a, b, got c" unless `name` is known.
void check_known(const char* what, const std::string& name, const std::vector<std::string>& known);

// Groups of parameters by their learning rate: for each entry of `rates`, in order, those whose
// longest prefix it is. A parameter without one, and a prefix without a parameter among `all`, are
// errors.
std::vector<std::pair<double, NamedTensors>> rate_groups(
    const std::vector<std::pair<std::string, double>>& rates, const NamedTensors& trained,
    const NamedTensors& all);

}  // namespace placket
