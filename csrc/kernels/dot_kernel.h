#pragma once

#include <cstdint>

namespace placket {

// Queries of a tile stand so many values apart, and a tile takes at most so many dimensions.
constexpr int64_t kDotBlock = 256;
constexpr int64_t kMostTileQueries = 8, kMostTileItems = 32;

// What a matrix product is made of on this processor: a tile of scores stays in registers while the
// dimensions go by, the items of a panel in the lanes, one query's value in all of them.
template <class A>
struct DotKernel {
  // Scores [1, 2, ... queries; items], added to those that are there or in their place. `panel` is
  // [depth, items], aligned to 64 bytes.
  using Tile = void (*)(const A* queries, const A* panel, int64_t depth, A* scores, int64_t stride,
                        bool add);

  int64_t queries, items;        // of the largest tile; items is a multiple of eight
  Tile tiles[kMostTileQueries];  // for 1, 2, ... queries
  // Eight rows to eight columns of a panel that is `width` wide; depth is a multiple of eight.
  void (*transpose)(const A* rows, int64_t stride, int64_t depth, A* panel, int64_t width);
};

// Of float the fastest that this processor has, of double a portable one.
template <class A>
const DotKernel<A>& dot_kernel();

}  // namespace placket
