#pragma once

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include <functional>
#include <numeric>
#include <vector>

#include "base/block_pool.h"

namespace placket {

// An uninitialised tensor on the CPU, dense in some order of its dimensions, in the pool's memory
// or in pinned memory.
inline at::Tensor pooled_empty(const std::vector<int64_t>& sizes,
                               const std::vector<int64_t>& strides, at::ScalarType type,
                               bool pin_memory) {
  if (pin_memory) {
    return at::empty_strided(sizes, strides, at::TensorOptions(type).pinned_memory(true));
  }
  const int64_t count =
      std::accumulate(sizes.begin(), sizes.end(), int64_t(1), std::multiplies<>());
  const size_t bytes = size_t(count) * at::elementSize(type);
  void* block = BlockPool::get().take(bytes);
  return at::from_blob(
      block, sizes, strides, [bytes](void* given) { BlockPool::get().give(given, bytes); },
      at::TensorOptions(type));
}

}  // namespace placket
