#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/tensor_file.h"

namespace placket {

// The checkpoints of a run folder:
//
//   checkpoints/step_00001200/{model.safetensors, trainer.safetensors, config.json}
//   last -> checkpoints/step_00001200        best, stages/<name>: likewise
//
// A checkpoint is written under another name and renamed when all of it is on the disk; then the
// links are switched, each by one rename; then what no link points to is removed. So a kill at any
// moment leaves `last` and `best` whole.
struct Checkpoint {
  TensorFile model;    // the weights alone
  TensorFile trainer;  // what resuming needs besides
  std::string config;  // JSON, the model's configuration
};

// `links`: which links shall point to it, "last", "best" or "stages/<name>".
void save_checkpoint(const std::string& run, int64_t step, const Checkpoint& checkpoint,
                     const std::vector<std::string>& links);

// Points a link at what another one points at.
void copy_link(const std::string& run, const std::string& from, const std::string& to);

// `folder` is a checkpoint itself, as `<run>/last`.
Checkpoint load_checkpoint(const std::string& folder);

}  // namespace placket
