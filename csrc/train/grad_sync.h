#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <vector>

namespace c10d {
class ProcessGroup;
}

namespace placket {

// What the ranks of a run exchange. Every rank makes the same calls with the same shapes in the
// same order. Without a group there is one rank and nothing is exchanged.
class GradSync {
 public:
  GradSync();
  explicit GradSync(c10::intrusive_ptr<c10d::ProcessGroup> group,
                    int64_t bucket_bytes = int64_t{25} << 20);
  ~GradSync();
  GradSync(GradSync&&) noexcept;

  int64_t rank() const { return rank_; }
  int64_t world_size() const { return world_size_; }

  // Replaces each tensor by its mean over the ranks. Tensors of one dtype travel together,
  // flattened into buckets.
  void average(const std::vector<at::Tensor>& tensors) const;

  // Rows [N, ...] of every rank joined in rank order to [world_size * N, ...]; N is the same on
  // every rank. Only the own rows carry a gradient, and it is multiplied by world_size: when every
  // rank computes the same loss of the joined rows and the gradients of the parameters are averaged
  // afterwards, what results is the gradient of that loss, as on one rank with the joined batch.
  at::Tensor gather(const at::Tensor& rows) const;

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  int64_t bucket_bytes_ = 0;
  int64_t rank_ = 0;
  int64_t world_size_ = 1;
};

}  // namespace placket
