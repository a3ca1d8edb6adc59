#pragma once

#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>

namespace placket {

// How the learning rates fall over a stage.
struct Schedule {
  std::string kind =
      "step";  // "step": times `factor` every `every` epochs. "cosine": to 0 at the end
  double factor = 0.9;
  int64_t every = 3;
  int64_t warmup_steps = 0;  // the rates rise linearly over this many first steps
};

// What every learning rate is multiplied by in a step (both counted from 0 within the stage).
inline double rate_factor(const Schedule& schedule, int64_t step, int64_t steps_per_epoch,
                          int64_t steps) {
  const double warmup =
      step < schedule.warmup_steps ? double(step + 1) / double(schedule.warmup_steps) : 1.0;
  if (schedule.kind == "cosine") {
    return warmup * 0.5 * (1.0 + std::cos(std::numbers::pi * double(step) / double(steps)));
  }
  TORCH_CHECK_VALUE(schedule.kind == "step", "schedule: kind must be step or cosine, got ",
                    schedule.kind);
  TORCH_CHECK_VALUE(schedule.every > 0, "schedule: every must be at least 1 epoch, got ",
                    schedule.every);
  const int64_t decays = step / steps_per_epoch / schedule.every;
  return warmup * std::pow(schedule.factor, double(decays));
}

}  // namespace placket
