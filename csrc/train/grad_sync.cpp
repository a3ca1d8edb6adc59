#include "train/grad_sync.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace placket {

using at::Tensor;
using Group = c10::intrusive_ptr<c10d::ProcessGroup>;

GradSync::GradSync() = default;
GradSync::~GradSync() = default;
GradSync::GradSync(GradSync&&) noexcept = default;

GradSync::GradSync(Group group, int64_t bucket_bytes)
    : group_(std::move(group)), bucket_bytes_(bucket_bytes) {
  if (group_) {
    rank_ = group_->getRank();
    world_size_ = group_->getSize();
  }
}

void GradSync::average(const std::vector<Tensor>& tensors) const {
  if (world_size_ == 1) return;
  const at::NoGradGuard no_grad;
  size_t first = 0;
  while (first < tensors.size()) {
    size_t last = first;
    int64_t bytes = 0;
    std::vector<Tensor> flat;
    while (last < tensors.size() && (last == first || bytes < bucket_bytes_) &&
           tensors[last].scalar_type() == tensors[first].scalar_type()) {
      flat.push_back(tensors[last].reshape({-1}));
      bytes += int64_t(tensors[last].nbytes());
      ++last;
    }
    Tensor bucket = at::cat(flat);
    std::vector<Tensor> buckets = {bucket};
    group_->allreduce(buckets)->wait();
    bucket.div_(double(world_size_));
    int64_t offset = 0;
    for (; first < last; ++first) {
      const Tensor& tensor = tensors[first];
      tensor.copy_(bucket.narrow(0, offset, tensor.numel()).view(tensor.sizes()));
      offset += tensor.numel();
    }
  }
}

namespace {

struct Gather : torch::autograd::Function<Gather> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& rows,
                        const Group& group) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const int64_t ranks = group->getSize();
    ctx->saved_data["rank"] = int64_t{group->getRank()};
    ctx->saved_data["ranks"] = ranks;
    std::vector<std::vector<Tensor>> parts(1);
    for (int64_t i = 0; i < ranks; ++i) {
      parts[0].push_back(at::empty_like(rows, at::MemoryFormat::Contiguous));
    }
    std::vector<Tensor> own = {rows.contiguous()};
    group->allgather(parts, own)->wait();
    return at::cat(parts[0]);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grad) {
    const int64_t ranks = ctx->saved_data["ranks"].toInt();
    const int64_t rows = grad[0].size(0) / ranks;
    const Tensor own = grad[0].narrow(0, ctx->saved_data["rank"].toInt() * rows, rows);
    return {own * ranks, Tensor()};
  }
};

}  // namespace

Tensor GradSync::gather(const Tensor& rows) const {
  return world_size_ == 1 ? rows : Gather::apply(rows, group_);
}

}  // namespace placket
