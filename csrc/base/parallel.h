#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace placket {

// Calls f(begin, end) on disjoint parts of [begin, end), each at least `grain` long, on torch's own
// OpenMP threads (torch.set_num_threads holds here too). Runs in the calling thread when nested.
// The first exception is rethrown.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  const int64_t most = (count + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int threads = int(std::min<int64_t>(omp_get_max_threads(), most));
  if (threads <= 1 || omp_in_parallel()) {
    f(begin, end);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel num_threads(threads)
  {
    const int64_t parts = omp_get_num_threads();
    const int64_t part = omp_get_thread_num();
    const int64_t first = begin + count * part / parts;
    const int64_t last = begin + count * (part + 1) / parts;
    try {
      if (first < last) f(first, last);
    } catch (...) {
#pragma omp critical
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace placket
