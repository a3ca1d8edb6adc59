#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/loader.h"
#include "train/adam.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/grad_sync.h"
#include "train/hooks.h"
#include "train/host_memory.h"
#include "train/system.h"

namespace placket {

// What a stage's sampler and augmentation are seeded with, and torch's generators (dropout) in a
// step of the run on a rank.
uint64_t stage_seed(uint64_t seed, int64_t stage_index);
uint64_t step_seed(uint64_t seed, int64_t step, int64_t rank);

struct TrainerConfig {
  StageConfig stage;
  int64_t stage_index = 0;
  int64_t first_step = 0;  // steps of all stages before
  uint64_t seed = 0;
  bool bfloat16 = false;
  Preprocess preprocess;
  int64_t loader_threads = 2;
  std::string views = "crop";    // see LoaderConfig
  bool skip_unreadable = false;  // see LoaderConfig
  int64_t report_every = 20;     // steps
  int64_t evaluate_every = 0;    // steps; 0: never. Also after the stage's last step
  int64_t checkpoint_every = 0;  // steps; 0: only with evaluations and at the end
  int64_t poll_milliseconds = 50;
  std::string run;                  // run folder; empty: no checkpoints
  std::string model_config = "{}";  // config.json of the checkpoints
};

// Runs one stage: loader, forward, losses, backward, exchange of gradients, Adam; evaluation,
// reports and checkpoints on schedule.
//
// Every random choice is a function of (seed, step, rank), so the state is weights, optimizer and
// counters. A run that was stopped anywhere and resumed from its last checkpoint gives what it
// would have given, on the CPU in every bit. torch's default generators are left as they were.
//
// A loss that is not finite stops the run before the weights change: on the CPU in its step, on
// CUDA at the next report, the updates in between left out.
class Trainer {
 public:
  Trainer(std::shared_ptr<System> system, std::shared_ptr<const ImageList> images,
          std::shared_ptr<const LabelTable> labels, std::optional<EvaluationSet> evaluation,
          const TrainerConfig& config, Hooks hooks = {}, GradSync sync = {});
  ~Trainer();

  // Takes one step, after what is due before it, and returns the losses' values, unweighted, by
  // name.
  std::vector<std::pair<std::string, double>> step();
  // Runs to the end of the stage, or for at most `steps` more.
  void run(std::optional<int64_t> steps = std::nullopt);
  // Evaluates now.
  Evaluation evaluate();

  int64_t steps_done() const { return step_; }  // of the stage
  int64_t steps() const { return steps_; }      // of the stage, in all
  int64_t steps_per_epoch() const;
  bool done() const { return step_ >= steps_ && settled(); }
  std::optional<double> best() const { return best_; }
  // Images that could not be read and were replaced since the trainer was made.
  std::map<int64_t, std::string> skipped() const { return loader_->skipped(); }

  // Everything that resuming needs. The tensors are the trainer's own, not copies.
  Checkpoint state() const;
  // Continues from a state of the same stage; anything missing, unknown or of another shape is an
  // error, after which the trainer is as it was.
  void load_state(const Checkpoint& state);
  // Writes a checkpoint of the state as it is.
  void save() { save({"last"}); }

 private:
  struct Progress;

  void take_step();
  std::vector<std::pair<std::string, double>> losses_of(const at::Tensor& row) const;
  void check_finite(const at::Tensor& window, int64_t first) const;
  void settle();
  bool settled() const;
  bool report_due() const;
  bool evaluation_due() const;
  bool checkpoint_due() const;
  void report();
  void poll();
  void save(const std::vector<std::string>& links);
  int64_t epoch() const;

  std::shared_ptr<System> system_;
  std::shared_ptr<const ImageList> images_;
  std::optional<EvaluationSet> evaluation_;
  TrainerConfig config_;
  Hooks hooks_;
  GradSync sync_;
  std::shared_ptr<const BatchSource> source_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<Adam> adam_;
  at::Device device_ = at::kCPU;
  std::optional<KeepHostMemory> host_memory_;  // where the steps run on the host

  int64_t steps_ = 0;
  int64_t step_ = 0;
  bool loader_moved_ = false;  // the loader's next batch is not step_'s
  int64_t evaluated_ = -1;     // step of the last evaluation
  int64_t saved_ = -1;         // step of the last checkpoint
  std::optional<double> best_;
  int64_t best_step_ = -1;

  // Losses of the steps since the last report, [report_every, losses + 1] float32 on the device;
  // the last column is the weighted sum.
  at::Tensor window_;
  int64_t window_size_ = 0;
  at::Tensor bad_;  // float32: 1 once a loss was not finite, on a device that is not waited for

  std::unique_ptr<Progress> progress_;  // clocks
};

}  // namespace placket
