#include "train/system.h"

#include <ATen/Functions.h>

#include <algorithm>

namespace placket {
namespace {

// A copy from pageable memory would wait for the device; from pinned memory it runs beside it.
at::Tensor moved(const at::Tensor& tensor, at::Device device) {
  if (!tensor.defined() || tensor.device() == device) return tensor;
  return tensor.pin_memory().to(device, /*non_blocking=*/true);
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

Batch to_device(const Batch& batch, at::Device device) {
  Batch out = batch;
  for (at::Tensor* tensor : {&out.images, &out.attributes, &out.values, &out.labels, &out.classes,
                             &out.pixels, &out.offsets, &out.sizes}) {
    *tensor = moved(*tensor, device);
  }
  return out;
}

void check_known(const char* what, const std::string& name, const std::vector<std::string>& known) {
  TORCH_CHECK_VALUE(std::find(known.begin(), known.end(), name) != known.end(), what,
                    " must be one of ", joined(known), ", got '", name, "'");
}

std::vector<std::pair<double, NamedTensors>> rate_groups(
    const std::vector<std::pair<std::string, double>>& rates, const NamedTensors& trained,
    const NamedTensors& all) {
  std::vector<std::pair<double, NamedTensors>> groups;
  for (const auto& [prefix, rate] : rates) {
    const auto fits = [&p = prefix](const auto& named) { return named.first.starts_with(p); };
    TORCH_CHECK_VALUE(rate >= 0, "stage: rate of '", prefix, "' must be at least 0, got ", rate);
    TORCH_CHECK_VALUE(std::any_of(all.begin(), all.end(), fits),
                      "stage: no parameter begins with '", prefix, "', for which a rate is given");
    groups.emplace_back(rate, NamedTensors());
  }
  for (const auto& named : trained) {
    size_t best = rates.size();
    for (size_t i = 0; i < rates.size(); ++i) {
      const bool fits = named.first.starts_with(rates[i].first);
      if (fits && (best == rates.size() || rates[i].first.size() > rates[best].first.size()))
        best = i;
    }
    TORCH_CHECK_VALUE(best < rates.size(), "stage: no rate fits the parameter '", named.first,
                      "'; give one for a prefix of its name, 0 to keep it as it is");
    groups[best].second.push_back(named);
  }
  return groups;
}

}  // namespace placket
