#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

namespace placket {

// How the learning rates fall over a stage.
struct Schedule {
  // "step": times `factor` every `every` epochs; "milestones": times `factor` after each of these
  // epochs; "cosine": to 0 at the end.
  std::string kind = "step";
  double factor = 0.9;
  int64_t every = 3;
  std::vector<int64_t> milestones;
  int64_t warmup_steps = 0;   // the rates rise linearly over this many first steps,
  int64_t warmup_epochs = 0;  // or over the steps of this many first epochs
};

// What every learning rate is multiplied by in a step (both counted from 0 within the stage).
inline double rate_factor(const Schedule& schedule, int64_t step, int64_t steps_per_epoch,
                          int64_t steps) {
  TORCH_CHECK_VALUE(schedule.warmup_steps == 0 || schedule.warmup_epochs == 0,
                    "schedule: warmup_steps must be 0 with warmup_epochs, got ",
                    schedule.warmup_steps);
  const int64_t rising = schedule.warmup_steps + schedule.warmup_epochs * steps_per_epoch;
  const double warmup = step < rising ? double(step + 1) / double(rising) : 1.0;
  if (schedule.kind == "cosine") {
    return warmup * 0.5 * (1.0 + std::cos(std::numbers::pi * double(step) / double(steps)));
  }
  if (schedule.kind == "milestones") {
    const int64_t epoch = step / steps_per_epoch;
    const auto passed = std::count_if(schedule.milestones.begin(), schedule.milestones.end(),
                                      [&](int64_t milestone) { return epoch >= milestone; });
    return warmup * std::pow(schedule.factor, double(passed));
  }
  TORCH_CHECK_VALUE(schedule.kind == "step",
                    "schedule: kind must be step, milestones or cosine, got ", schedule.kind);
  TORCH_CHECK_VALUE(schedule.every > 0, "schedule: every must be at least 1 epoch, got ",
                    schedule.every);
  const int64_t decays = step / steps_per_epoch / schedule.every;
  return warmup * std::pow(schedule.factor, double(decays));
}

}  // namespace placket
