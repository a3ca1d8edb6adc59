#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/named_tensors.h"

namespace placket {

struct AdamConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool decoupled =
      false;  // AdamW (Loshchilov and Hutter, 2019): decay of the weights, not an L2 term
};

struct AdamGroup {
  std::string name;
  double rate = 0.0;
  NamedTensors parameters;
};

// Adam (Kingma and Ba, 2015) on torch's fused kernels, one call for each group; equal in bits to
// torch.optim.Adam(fused=True). float32 or float64 parameters, CPU and CUDA.
class Adam {
 public:
  Adam(std::vector<AdamGroup> groups, const AdamConfig& config);

  // One update with the gradients in `.grad`, rates times `factor`; parameters without a gradient
  // stay as they are. Where `found_inf` (float32, one element, the parameters' device) is 1 nothing
  // changes.
  void step(double factor, const std::optional<at::Tensor>& found_inf = std::nullopt);

  void zero_grad();

  const std::vector<AdamGroup>& groups() const { return groups_; }
  // The parameters of all groups in order.
  std::vector<at::Tensor> parameters() const;

  // The optimizer's own tensors, not copies: "exp_avg.<parameter>", "exp_avg_sq.<parameter>",
  // "step.<parameter>".
  NamedTensors state() const;

 private:
  struct Moments {
    std::vector<at::Tensor> exp_avgs, exp_avg_sqs, steps;
  };

  std::vector<AdamGroup> groups_;
  std::vector<Moments> moments_;
  AdamConfig config_;
};

}  // namespace placket
