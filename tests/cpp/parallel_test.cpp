#include "base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace placket {
namespace {

TEST(ParallelFor, VisitsEachIndexOnce) {
  for (const int64_t count : {0, 1, 7, 1000}) {
    std::vector<std::atomic<int>> seen(count);
    parallel_for(0, count, 3, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) ++seen[i];
    });
    for (const auto& times : seen) EXPECT_EQ(times.load(), 1);
  }
}

TEST(ParallelFor, RethrowsInTheCallingThread) {
  EXPECT_THROW(parallel_for(0, 100, 1, [](int64_t, int64_t) { throw std::out_of_range("here"); }),
               std::out_of_range);
}

TEST(ParallelFor, NestedCallsRunInline) {
  std::atomic<int64_t> sum = 0;
  parallel_for(0, 8, 1, [&](int64_t first, int64_t last) {
    parallel_for(first, last, 1, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) sum += i;
    });
  });
  EXPECT_EQ(sum.load(), 28);
}

}  // namespace
}  // namespace placket
