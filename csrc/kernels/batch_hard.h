#pragma once

#include <cstdint>
#include <limits>

#include "base/host_device.h"

namespace placket {

// Rows of unit length and what says which of them are positives of each other: labels, or sets of
// classes, or a relation. See ops/batch_hard.h for the contract.
template <class A>
struct BatchHard {
  const A* rows;            // [count, dims]
  const int64_t* labels;    // [count], or [count, words]; null with a relation
  const uint8_t* relation;  // [count, count], symmetric, or null
  const int64_t* groups;    // [count], or null: all of one group
  const int64_t* domains;   // [count], or null: rows of one domain are compared too
  int64_t count;
  int64_t dims;
  int64_t words;  // of a set of classes; 0: each row has one label
  bool semi_hard;
  int64_t* positive;  // of each row of the operator's arguments, also the three below
  int64_t* negative;
  A* positive_similarity;
  A* negative_similarity;
};

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <class A>
constexpr A kNan = std::numeric_limits<A>::quiet_NaN();

// The largest value that was offered and where it was; of equal ones the first place.
template <class A>
struct Hardest {
  A value = -kInfinity<A>;
  int32_t place = -1;

  PLACKET_HOST_DEVICE void take(const Hardest& other) {
    const bool first = value == other.value && other.place >= 0 && other.place < place;
    if (other.value > value || first) *this = other;
  }
};

// A similarity as Hardest compares it: `sign` 1 looks for the largest, -1 for the smallest, and NaN
// is ahead of all, so that whoever uses the pair sees it.
template <class A>
PLACKET_HOST_DEVICE inline A hardness(A similarity, A sign) {
  return similarity == similarity ? sign * similarity : kInfinity<A>;
}

template <class A>
PLACKET_HOST_DEVICE inline A similarity_of(const Hardest<A>& hardest, A sign) {
  if (hardest.place < 0) return A(0);
  return hardest.value == kInfinity<A> ? kNan<A> : sign * hardest.value;
}

// All rows take part, those of a group are neighbours, `dims` is a multiple of kDotLanes, and
// order[i], ascending within a group, is where row i stands in the operator's arguments; rows that
// are not in it are left as they are.
template <class A>
void batch_hard_cpu(const BatchHard<A>& in, const int64_t* order);

// counted[i]: whether row i takes part. `parts`: [batch_hard_splits(count), count, 2], `ceilings`:
// [count]; both are for the kernels to work in.
inline int64_t batch_hard_splits(int64_t count) {
  // With blocks of 64 rows about two of them for each processor of a large device.
  constexpr int64_t kBlocks = 264, kRows = 64;
  const int64_t splits = kBlocks * kRows / (count + kRows);
  return splits < 1 ? 1 : splits;
}
template <class A>
const char* launch_batch_hard(const BatchHard<A>& in, const bool* counted, Hardest<A>* parts,
                              A* ceilings, Stream stream);

}  // namespace placket
