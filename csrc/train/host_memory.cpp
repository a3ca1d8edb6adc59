#include "train/host_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <unordered_map>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace placket {
namespace {

constexpr size_t kLeast = size_t(1) << 20;  // malloc itself keeps smaller blocks
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kPage = 4096;
// A kept block serves a request that fills at least 7/8 of it.
constexpr bool fits(size_t block, size_t request) {
  return request <= block && block - request <= block / 8;
}

struct Block {
  void* data;
  size_t size;
};

size_t rounded(size_t size) {
  const size_t unit = size < 4 * kHugePage ? kPage : kHugePage;
  return (size + unit - 1) / unit * unit;
}

// Null where there is no memory.
void* new_block(size_t size) {
  void* data = nullptr;
  if (posix_memalign(&data, size < 4 * kHugePage ? kPage : kHugePage, size) != 0) return nullptr;
#ifdef __linux__
  // Only advice: it may be refused.
  if (size >= 4 * kHugePage) madvise(data, size, MADV_HUGEPAGE);
#endif
  return data;
}

// Never destroyed: tensors may outlive everything else.
class HostMemory final : public c10::Allocator {
 public:
  static HostMemory& instance() {
    static HostMemory* const memory = new HostMemory(c10::GetCPUAllocator());
    return *memory;
  }

  void acquire() {
    const std::lock_guard lock(mutex_);
    if (users_++ == 0) most_used_ = used_;
    // Once; from then on every request comes here and, without users, is passed on.
    if (!installed_) c10::SetCPUAllocator(this, /*priority=*/100);
    installed_ = true;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    if (--users_ == 0) drop_kept(0);
  }

  c10::DataPtr allocate(size_t size) override {
    if (size >= kLeast) {
      if (void* const data = take(size)) {
        c10::reportMemoryUsageToProfiler(data, int64_t(size), 0, 0, c10::Device(c10::kCPU));
        return {data, data, &give_back, c10::Device(c10::kCPU)};
      }
    }
    return under_->allocate(size);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &delete_raw; }

  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

 private:
  explicit HostMemory(c10::Allocator* under) : under_(under) {}

  // Null without users, or without memory.
  void* take(size_t request) {
    const std::lock_guard lock(mutex_);
    if (users_ == 0) return nullptr;
    // The latest first: it is the likeliest to be in cache.
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(),
                                    [&](const Block& block) { return fits(block.size, request); });
    Block block{};
    if (found != kept_.rend()) {
      block = *found;
      kept_bytes_ -= block.size;
      kept_.erase(std::next(found).base());
    } else {
      block.size = rounded(request);
      most_used_ = std::max(most_used_, used_ + block.size);
      const size_t room = most_used_ + most_used_ / 4 - (used_ + block.size);
      drop_kept(room);
      block.data = new_block(block.size);
      if (block.data == nullptr) {
        drop_kept(0);
        block.data = new_block(block.size);
      }
      if (block.data == nullptr) return nullptr;
    }
    used_ += block.size;
    most_used_ = std::max(most_used_, used_);
    sizes_.emplace(block.data, block.size);
    return block.data;
  }

  static void give_back(void* data) {
    HostMemory& self = instance();
    const std::lock_guard lock(self.mutex_);
    const auto found = self.sizes_.find(data);
    TORCH_INTERNAL_ASSERT(found != self.sizes_.end());
    const Block block{data, found->second};
    self.sizes_.erase(found);
    self.used_ -= block.size;
    c10::reportMemoryUsageToProfiler(data, -int64_t(block.size), 0, 0, c10::Device(c10::kCPU));
    if (self.users_ == 0) {
      free(data);
      return;
    }
    self.kept_.push_back(block);
    self.kept_bytes_ += block.size;
  }

  static void delete_raw(void* data) {
    HostMemory& self = instance();
    const bool own = [&] {
      const std::lock_guard lock(self.mutex_);
      return self.sizes_.count(data) > 0;
    }();
    if (own) {
      give_back(data);
    } else {
      self.under_->raw_deallocate(data);
    }
  }

  // Frees the oldest until no more than so many bytes are kept.
  void drop_kept(size_t bytes) {
    while (kept_bytes_ > bytes) {
      kept_bytes_ -= kept_.front().size;
      free(kept_.front().data);
      kept_.pop_front();
    }
  }

  c10::Allocator* const under_;
  std::mutex mutex_;
  bool installed_ = false;
  int64_t users_ = 0;
  size_t used_ = 0, most_used_ = 0, kept_bytes_ = 0;
  std::unordered_map<void*, size_t> sizes_;  // of the blocks in use
  std::deque<Block> kept_;                   // the oldest first
};

}  // namespace

KeepHostMemory::KeepHostMemory() { HostMemory::instance().acquire(); }
KeepHostMemory::~KeepHostMemory() { HostMemory::instance().release(); }

}  // namespace placket
