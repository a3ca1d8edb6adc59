#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace placket {

// What the run tells every `report_every` steps.
struct Report {
  int64_t step = 0;                                    // steps done, over all stages
  int64_t epoch = 0;                                   // of the stage, from 0
  std::vector<std::pair<std::string, double>> losses;  // unweighted means since the last report
  double loss = 0;                                     // mean of the weighted sum
  std::vector<std::pair<std::string, double>> rates;   // learning rate of each parameter group
  double images_per_second = 0;                        // over all ranks
  double data_wait = 0;  // share of the time that was spent waiting for the loader
};

// What an evaluation found.
struct Evaluation {
  int64_t step = 0;
  int64_t epoch = 0;
  std::vector<double> per_attribute;  // MAP in [0, 1]; NaN for an attribute without queries
  double overall = 0;                 // mean over all queries
  bool best = false;                  // the stage's best so far
};

// How the run speaks to the outside; the core knows no Python. Any of them may throw: the exception
// leaves run() unchanged, with the trainer between two steps, so that training can go on.
struct Hooks {
  // About every 50 ms: between steps, and at the layers of a model; a step that it ends by throwing
  // is as if it had not begun.
  std::function<void()> poll;
  std::function<void(const Report&)> report;
  std::function<void(const Evaluation&)> evaluated;
};

// Losses from outside, by name: of embeddings [V, E] float32 and the class of each [V] int64, a
// scalar. What one throws ends the step unchanged, as if it had not begun.
using ExtraLosses =
    std::map<std::string, std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>>;

}  // namespace placket
