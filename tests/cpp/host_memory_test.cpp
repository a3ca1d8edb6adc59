#include "train/host_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <optional>

namespace placket {
namespace {

constexpr int64_t kLarge = int64_t(12) << 20;

at::Tensor bytes(int64_t count) { return at::empty({count}, at::dtype(at::kByte)); }

TEST(KeepHostMemory, ServesTheNextTensorOfTheSameSize) {
  const KeepHostMemory keep;
  const void* const first = bytes(kLarge).data_ptr();
  const at::Tensor second = bytes(kLarge - 100);
  EXPECT_EQ(second.data_ptr(), first);
  EXPECT_NE(bytes(kLarge).data_ptr(), first);
}

TEST(KeepHostMemory, LeavesAMuchLargerBlockAlone) {
  const KeepHostMemory keep;
  const void* const large = bytes(kLarge).data_ptr();
  const at::Tensor small = bytes(kLarge / 2);
  EXPECT_NE(small.data_ptr(), large);
  EXPECT_EQ(bytes(kLarge).data_ptr(), large);
}

TEST(KeepHostMemory, TensorsOutliveIt) {
  std::optional<KeepHostMemory> keep(std::in_place);
  const at::Tensor tensor = at::full({kLarge}, 7, at::dtype(at::kByte));
  keep.reset();
  EXPECT_EQ(tensor.sum().item<int64_t>(), 7 * kLarge);
  keep.emplace();
  const at::Tensor other = bytes(kLarge);
  EXPECT_NE(other.data_ptr(), tensor.data_ptr());
}

TEST(KeepHostMemory, RawMemoryGoesBackToWhereItCameFrom) {
  const KeepHostMemory keep;
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  for (const int64_t size : {int64_t(64), kLarge}) {
    void* const data = allocator->raw_allocate(size);
    ASSERT_NE(data, nullptr);
    allocator->raw_deallocate(data);
  }
  const void* const first = bytes(kLarge).data_ptr();
  EXPECT_EQ(bytes(kLarge).data_ptr(), first);
}

}  // namespace
}  // namespace placket
