// One block takes a square tile of rows and walks over its share of the columns, tile by tile: a
// matrix product by way of shared memory, of which each thread holds kPart x kPart entries in
// registers and keeps the hardest of each of its rows there. Nothing of the matrix is stored. Then
// the 16 threads of a row meet by shuffles, and a second kernel joins the shares. A larger value
// wins, of equal ones the smaller column, so that the result depends on neither tiles nor shares.
#include "base/launch.cuh"
#include "kernels/batch_hard.h"

namespace placket {
namespace {

constexpr int kSide = 16;   // a block is kSide x kSide threads
constexpr int kDepth = 16;  // dimensions in shared memory at a time

template <class A>
constexpr int kPart = sizeof(A) == 4 ? 8 : 4;
template <class A>
constexpr int kTile = kSide * kPart<A>;

// `below`: whether the pass looks for negatives alone, the least similar one and the most similar
// one below the ceiling; otherwise for the least similar positive and the most similar negative.
template <class A>
struct Pass {
  BatchHard<A> in;
  const bool* counted;
  const A* ceilings;
  Hardest<A>* parts;  // [splits, count, 2], far and near
  int64_t splits;
  bool below;
};

template <class A>
__device__ bool related(const BatchHard<A>& in, int64_t row, int64_t column) {
  if (in.relation != nullptr) return in.relation[row * in.count + column] != 0;
  if (in.words == 0) return in.labels[row] == in.labels[column];
  int64_t shared = 0;
  for (int64_t w = 0; w < in.words; ++w) {
    shared |= in.labels[row * in.words + w] & in.labels[column * in.words + w];
  }
  return shared != 0;
}

template <class A>
__device__ bool compared(const Pass<A>& pass, int64_t row, int64_t column) {
  const BatchHard<A>& in = pass.in;
  if (row >= in.count || column >= in.count || row == column) return false;
  if (!pass.counted[row] || !pass.counted[column]) return false;
  if (in.domains != nullptr && in.domains[row] == in.domains[column]) return false;
  return in.groups == nullptr || in.groups[row] == in.groups[column];
}

// Rows [first, first + kTile) of dimensions [depth, depth + kDepth), transposed; 0 outside.
template <class A>
__device__ void load(const BatchHard<A>& in, int64_t first, int64_t depth,
                     A (&tile)[kDepth][kTile<A> + 1]) {
  const int thread = threadIdx.y * kSide + threadIdx.x;
  const int64_t d = depth + thread % kDepth;
  for (int r = thread / kDepth; r < kTile<A>; r += kSide * kSide / kDepth) {
    const bool inside = first + r < in.count && d < in.dims;
    tile[thread % kDepth][r] = inside ? in.rows[(first + r) * in.dims + d] : A(0);
  }
}

template <class A>
__device__ Hardest<A> shuffled(const Hardest<A>& own, int offset) {
  return {__shfl_xor_sync(0xffffffffu, own.value, offset),
          __shfl_xor_sync(0xffffffffu, own.place, offset)};
}

template <class A>
__global__ void __launch_bounds__(kSide* kSide) batch_hard_kernel(Pass<A> pass) {
  constexpr int kMine = kPart<A>;
  __shared__ A rows[kDepth][kTile<A> + 1], columns[kDepth][kTile<A> + 1];
  const BatchHard<A>& in = pass.in;
  const int64_t first = int64_t(blockIdx.x) * kTile<A>;
  const int64_t tiles = (in.count + kTile<A> - 1) / kTile<A>;
  const int64_t begin = tiles * blockIdx.y / pass.splits;
  const int64_t end = tiles * (blockIdx.y + 1) / pass.splits;
  Hardest<A> far[kMine], near[kMine];
  for (int64_t tile = begin; tile < end; ++tile) {
    A sums[kMine][kMine] = {};
    for (int64_t depth = 0; depth < in.dims; depth += kDepth) {
      load(in, first, depth, rows);
      load(in, tile * kTile<A>, depth, columns);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        A row[kMine], column[kMine];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          row[i] = rows[d][threadIdx.y + i * kSide];
          column[i] = columns[d][threadIdx.x + i * kSide];
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
#pragma unroll
          for (int j = 0; j < kMine; ++j) sums[i][j] += row[i] * column[j];
        }
      }
      __syncthreads();
    }
    // Bit i * kMine + j is of sums[i][j]. In a loop of its own, which is not unrolled.
    uint64_t positives = 0, negatives = 0;
#pragma unroll 1
    for (int bit = 0; bit < kMine * kMine; ++bit) {
      const int64_t r = first + threadIdx.y + bit / kMine * kSide;
      const int64_t c = tile * kTile<A> + threadIdx.x + bit % kMine * kSide;
      if (!compared(pass, r, c)) continue;
      (related(in, r, c) ? positives : negatives) |= uint64_t{1} << bit;
    }
    const uint64_t distant = pass.below ? negatives : positives;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t r = first + threadIdx.y + i * kSide;
      const A ceiling = pass.below && r < in.count ? pass.ceilings[r] : kInfinity<A>;
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        const int32_t c = int32_t(tile * kTile<A> + threadIdx.x + j * kSide);
        const A s = sums[i][j];
        if (distant >> (i * kMine + j) & 1) far[i].take({hardness(s, A(-1)), c});
        if ((negatives >> (i * kMine + j) & 1) && !(s >= ceiling)) {
          near[i].take({hardness(s, A(1)), c});
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    for (int offset = kSide / 2; offset > 0; offset /= 2) {
      far[i].take(shuffled(far[i], offset));
      near[i].take(shuffled(near[i], offset));
    }
    const int64_t r = first + threadIdx.y + i * kSide;
    if (threadIdx.x == 0 && r < in.count) {
      Hardest<A>* part = pass.parts + (blockIdx.y * in.count + r) * 2;
      part[0] = far[i];
      part[1] = near[i];
    }
  }
}

template <class A>
__global__ void join_kernel(Pass<A> pass, A* ceilings) {
  const BatchHard<A>& in = pass.in;
  const int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r >= in.count) return;
  Hardest<A> far, near;
  for (int64_t s = 0; s < pass.splits; ++s) {
    far.take(pass.parts[(s * in.count + r) * 2]);
    near.take(pass.parts[(s * in.count + r) * 2 + 1]);
  }
  if (!pass.below) {
    in.positive[r] = far.place;
    in.positive_similarity[r] = similarity_of(far, A(-1));
    ceilings[r] = far.place < 0 ? kInfinity<A> : similarity_of(far, A(-1));
  }
  const bool none_below = pass.below && near.place < 0;
  in.negative[r] = none_below ? far.place : near.place;
  in.negative_similarity[r] = none_below ? similarity_of(far, A(-1)) : similarity_of(near, A(1));
}

template <class A>
const char* run(const Pass<A>& pass, A* ceilings, Stream stream) {
  constexpr int kThreads = 256;
  const int64_t count = pass.in.count;
  const dim3 grid(unsigned((count + kTile<A> - 1) / kTile<A>), unsigned(pass.splits));
  batch_hard_kernel<A><<<grid, dim3(kSide, kSide), 0, stream>>>(pass);
  if (const char* error = launch_error()) return error;
  join_kernel<A>
      <<<unsigned((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(pass, ceilings);
  return launch_error();
}

}  // namespace

template <class A>
const char* launch_batch_hard(const BatchHard<A>& in, const bool* counted, Hardest<A>* parts,
                              A* ceilings, Stream stream) {
  if (in.count == 0) return nullptr;
  Pass<A> pass = {in, counted, ceilings, parts, batch_hard_splits(in.count), /*below=*/false};
  const char* error = run(pass, ceilings, stream);
  if (error != nullptr || !in.semi_hard) return error;
  pass.below = true;
  return run(pass, ceilings, stream);
}

template const char* launch_batch_hard(const BatchHard<float>&, const bool*, Hardest<float>*,
                                       float*, Stream);
template const char* launch_batch_hard(const BatchHard<double>&, const bool*, Hardest<double>*,
                                       double*, Stream);

}  // namespace placket
