// A block of threads takes a share of one query's candidates and searches each among the query's
// sorted relevant keys, which stay in the nearest cache. Counters are whole numbers that are only
// added to, in shared memory where they fit and then once to global memory, so that neither shares
// nor the order of threads change them. A thread then measures a query, as the CPU does: divisions
// and sums in the order of the ranking.
#include <algorithm>

#include "base/launch.cuh"
#include "kernels/rank_counter.h"
#include "kernels/rank_counts.h"

namespace placket {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kShare = kThreads * 32;    // candidates of a block of threads
constexpr int64_t kSharedBytes = 48 * 1024;  // what a launch has without asking for more
constexpr int64_t kMostShares = 65535;       // of the grid's second dimension

__global__ void __launch_bounds__(kThreads) write_keys_kernel(RankBlock in) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < in.queries * in.most) in.keys[i] = relevant_key(in, i / in.most, i % in.most);
}

template <bool kInShared>
__global__ void __launch_bounds__(kThreads) count_kernel(RankBlock in) {
  extern __shared__ uint32_t shared[];
  const int64_t query = blockIdx.x;
  const int64_t size = rank_counters(in.most);
  uint32_t* all = in.counters + query * size;
  uint32_t* counters = kInShared ? shared : all;
  if constexpr (kInShared) {
    for (int64_t i = threadIdx.x; i < size; i += kThreads) shared[i] = 0;
    __syncthreads();
  }
  const int64_t step = int64_t(gridDim.y) * kThreads;
  for (int64_t row = int64_t(blockIdx.y) * kThreads + threadIdx.x; row < in.candidates;
       row += step) {
    const int64_t counter = block_counter_of(in, query, row);
    if (counter >= 0) atomicAdd(counters + counter, 1u);
  }
  if constexpr (kInShared) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kThreads) {
      if (shared[i] > 0) atomicAdd(all + i, shared[i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads) measure_kernel(RankBlock in) {
  const int64_t query = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (query < in.queries) measure_query(in, query);
}

unsigned blocks_for(int64_t threads) { return unsigned((threads + kThreads - 1) / kThreads); }

}  // namespace

const char* launch_write_rank_keys(const RankBlock& in, Stream stream) {
  const int64_t keys = in.queries * in.most;
  if (keys == 0) return nullptr;
  write_keys_kernel<<<blocks_for(keys), kThreads, 0, stream>>>(in);
  return launch_error();
}

const char* launch_measure_rank_block(const RankBlock& in, Stream stream) {
  if (in.queries == 0) return nullptr;
  const int64_t shares = std::clamp<int64_t>((in.candidates + kShare - 1) / kShare, 1, kMostShares);
  const dim3 grid(unsigned(in.queries), unsigned(shares));
  const int64_t bytes = rank_counters(in.most) * int64_t(sizeof(uint32_t));
  if (bytes <= kSharedBytes) {
    count_kernel<true><<<grid, kThreads, size_t(bytes), stream>>>(in);
  } else {
    count_kernel<false><<<grid, kThreads, 0, stream>>>(in);
  }
  if (const char* error = launch_error()) return error;
  measure_kernel<<<blocks_for(in.queries), kThreads, 0, stream>>>(in);
  return launch_error();
}

}  // namespace placket
