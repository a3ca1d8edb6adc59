#pragma once

#include <functional>
#include <utility>

namespace placket {

// A step on a slow machine takes seconds, and Ctrl-C shall not wait for its end. So whoever runs
// long computations sets for its thread what is called at their interruption points, and may throw
// there; without it they cost a comparison.
namespace detail {
inline thread_local std::function<void()> interruption;
}  // namespace detail

inline bool interruptible() { return bool(detail::interruption); }

inline void interruption_point() {
  if (detail::interruption) detail::interruption();
}

class InterruptionScope {
 public:
  explicit InterruptionScope(std::function<void()> poll)
      : previous_(std::exchange(detail::interruption, std::move(poll))) {}
  ~InterruptionScope() { detail::interruption = std::move(previous_); }
  InterruptionScope(const InterruptionScope&) = delete;
  InterruptionScope& operator=(const InterruptionScope&) = delete;

 private:
  std::function<void()> previous_;
};

}  // namespace placket
