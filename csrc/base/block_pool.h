#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace placket {

// Memory that is used again. The kernel clears the pages of every large block that malloc asks it
// for, which takes as long as decoding a small photograph into them. Thread-safe; blocks may be
// given back by another thread. Small blocks are malloc's.
class BlockPool {
 public:
  // Never destroyed: blocks may outlive everything else.
  static BlockPool& get() {
    static auto* pool = new BlockPool;
    return *pool;
  }

  // Aligned to 64 bytes, of any content. Throws std::bad_alloc.
  void* take(size_t bytes) {
    if (kUsed && bytes >= kSmallest) {
      const std::lock_guard<std::mutex> lock(mutex_);
      Block*& first = free_[size_class(bytes)];
      if (first != nullptr) {
        Block* block = first;
        first = block->next;
        kept_ -= rounded(bytes);
        return block;
      }
    }
    void* block = std::aligned_alloc(kAlignment, rounded(bytes));
    if (block == nullptr) throw std::bad_alloc();
    return block;
  }

  // `bytes` as it was taken.
  void give(void* block, size_t bytes) noexcept {
    if (kUsed && bytes >= kSmallest) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + rounded(bytes) <= kKept) {
        Block*& first = free_[size_class(bytes)];
        first = new (block) Block{first};
        kept_ += rounded(bytes);
        return;
      }
    }
    std::free(block);
  }

 private:
  struct Block {
    Block* next;
  };
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kUsed = false;  // a block used again would hide errors
#else
  static constexpr bool kUsed = true;
#endif
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kSmallest = size_t(64) << 10;
  static constexpr size_t kKept = size_t(256) << 20;

  // Eight classes from each power of two to the next.
  static size_t step(size_t bytes) { return std::bit_floor(bytes) / 8; }
  static size_t rounded(size_t bytes) {
    const size_t unit = kUsed && bytes >= kSmallest ? step(bytes) : kAlignment;
    return (bytes + unit - 1) / unit * unit + (bytes == 0 ? unit : 0);
  }
  static size_t size_class(size_t bytes) {
    const size_t whole = rounded(bytes);
    return size_t(std::bit_width(whole)) * 8 + whole / step(whole) % 8;
  }

  std::mutex mutex_;
  std::array<Block*, (8 * sizeof(size_t) + 1) * 8> free_{};
  size_t kept_ = 0;
};

// For vectors whose elements have no initial value and whose memory is the pool's.
template <class T>
struct PoolAllocator {
  using value_type = T;

  PoolAllocator() = default;
  template <class U>
  PoolAllocator(const PoolAllocator<U>&) {}  // NOLINT: as allocators convert

  T* allocate(size_t count) { return static_cast<T*>(BlockPool::get().take(count * sizeof(T))); }
  void deallocate(T* block, size_t count) noexcept {
    BlockPool::get().give(block, count * sizeof(T));
  }
  template <class U>
  void construct(U* place) noexcept {
    ::new (static_cast<void*>(place)) U;
  }
  template <class U, class... Args>
  void construct(U* place, Args&&... args) {
    ::new (static_cast<void*>(place)) U(static_cast<Args&&>(args)...);
  }
  template <class U>
  bool operator==(const PoolAllocator<U>&) const {
    return true;
  }
};

using Bytes = std::vector<uint8_t, PoolAllocator<uint8_t>>;

}  // namespace placket
