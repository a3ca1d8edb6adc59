#include "kernels/batch_hard.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <type_traits>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"
#include "kernels/dot_scores.h"
#include "kernels/lanes.h"

// A group's similarities are a symmetric matrix, of which a thread takes a block of rows from the
// diagonal to the right, a tile at a time. A tile serves its rows, and its columns right of the
// block in place of the tile below the diagonal, which is never computed. A thread meets the places
// that it offers to a row in ascending order, so that the first of equal ones is kept by itself.
namespace placket {
namespace {

// A tile stays in the second-level cache between the products and their two readers.
constexpr int64_t kTileRows = 240, kTileColumns = 256;

template <class A>
using IntegerLike = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
// What a column of a tile is to a row.
enum Kind { kNeither, kPositive, kNegative };

// In the first pass the least similar positive and the most similar negative. In the second the
// least similar negative and the most similar one below the row's ceiling.
struct Search {
  Kind far, near;
};

// What the threads have found for each row.
template <class A>
struct Found {
  std::vector<A> far, near;
  std::vector<IntegerLike<A>> far_place, near_place;

  explicit Found(int64_t count)
      : far(count, Hardest<A>().value), near(far), far_place(count, -1), near_place(count, -1) {}

  Hardest<A> far_of(int64_t i) const { return {far[i], int32_t(far_place[i])}; }
  Hardest<A> near_of(int64_t i) const { return {near[i], int32_t(near_place[i])}; }

  void take(const Found& other) {
    for (size_t i = 0; i < far.size(); ++i) {
      Hardest<A> f = far_of(int64_t(i)), n = near_of(int64_t(i));
      f.take(other.far_of(int64_t(i)));
      n.take(other.near_of(int64_t(i)));
      far[i] = f.value;
      far_place[i] = f.place;
      near[i] = n.value;
      near_place[i] = n.place;
    }
  }
};

// A row of a tile: its similarities with `count` columns and what these are to it.
template <class A>
struct TileRow {
  const A* similarities;
  const IntegerLike<A>* kinds;
  int64_t count;
};

// Offers the row, which stands at `place`, to each of its columns.
template <class A>
inline __attribute__((always_inline)) void offer_to_columns(
    const TileRow<A>& row, const Search& search, IntegerLike<A> place, const A* __restrict ceilings,
    A* __restrict far, IntegerLike<A>* __restrict far_place, A* __restrict near,
    IntegerLike<A>* __restrict near_place) {
  const A* __restrict similarities = row.similarities;
  const IntegerLike<A>* __restrict kinds = row.kinds;
  const IntegerLike<A> far_kind = search.far, near_kind = search.near;
  for (int64_t c = 0; c < row.count; ++c) {
    const A s = similarities[c];
    const A low = hardness(s, A(-1)), high = hardness(s, A(1));
    const bool farther = (kinds[c] == far_kind) & (low > far[c]);
    const bool nearer = (kinds[c] == near_kind) & !(s >= ceilings[c]) & (high > near[c]);
    far[c] = farther ? low : far[c];
    far_place[c] = farther ? place : far_place[c];
    near[c] = nearer ? high : near[c];
    near_place[c] = nearer ? place : near_place[c];
  }
}

// The hardest of the row's columns, as far and near.
template <class A>
inline __attribute__((always_inline)) void hardest_columns(const TileRow<A>& row,
                                                           const Search& search, A ceiling, A* far,
                                                           A* near) {
  using Integers = Lanes<IntegerLike<A>>;
  const Lanes<A> none = -kInfinity<A> - Lanes<A>{}, nan = kInfinity<A> - Lanes<A>{};
  const Integers far_kind = IntegerLike<A>(search.far) - Integers{};
  const Integers near_kind = IntegerLike<A>(search.near) - Integers{};
  Lanes<A> far_lanes = none, near_lanes = none;
  int64_t c = 0;
  for (; c + kLanes<A> <= row.count; c += kLanes<A>) {
    Lanes<A> s;
    Integers kinds;
    memcpy(&s, row.similarities + c, sizeof s);
    memcpy(&kinds, row.kinds + c, sizeof kinds);
    const Lanes<A> low = (kinds == far_kind) ? (s == s ? -s : nan) : none;
    const Integers below = (kinds == near_kind) & ~(s >= ceiling);
    const Lanes<A> high = below ? (s == s ? s : nan) : none;
    far_lanes = low > far_lanes ? low : far_lanes;
    near_lanes = high > near_lanes ? high : near_lanes;
  }
  A farthest = -kInfinity<A>, nearest = farthest;
  for (int64_t l = 0; l < kLanes<A>; ++l) {
    farthest = std::max<A>(farthest, far_lanes[l]);
    nearest = std::max<A>(nearest, near_lanes[l]);
  }
  for (; c < row.count; ++c) {
    const A s = row.similarities[c];
    if (row.kinds[c] == search.far) farthest = std::max(farthest, hardness(s, A(-1)));
    if (row.kinds[c] == search.near && !(s >= ceiling)) {
      nearest = std::max(nearest, hardness(s, A(1)));
    }
  }
  *far = farthest;
  *near = nearest;
}

inline __attribute__((always_inline)) double dot(const double* x, const double* y, int64_t count) {
  Lanes<double> lanes = {};
  for (int64_t d = 0; d < count; d += kLanes<double>) {
    Lanes<double> v, w;
    memcpy(&v, x + d, sizeof v);
    memcpy(&w, y + d, sizeof w);
    lanes += v * w;
  }
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

PLACKET_SIMD void products(const double* rows, const double* columns, int64_t row_count,
                           int64_t column_count, int64_t dims, double* out) {
  for (int64_t r = 0; r < row_count; ++r) {
    for (int64_t c = 0; c < column_count; ++c) {
      out[r * column_count + c] = dot(rows + r * dims, columns + c * dims, dims);
    }
  }
}

void products(const float* rows, const float* columns, int64_t row_count, int64_t column_count,
              int64_t dims, float* out) {
  dot_scores_cpu({rows, columns, row_count, column_count, dims}, out, column_count);
}

#define PLACKET_LEAVES(A)                                                                      \
  PLACKET_SIMD void offer(const TileRow<A>& row, const Search& search, IntegerLike<A> place,   \
                          const A* ceilings, A* far, IntegerLike<A>* far_place, A* near,       \
                          IntegerLike<A>* near_place) {                                        \
    offer_to_columns<A>(row, search, place, ceilings, far, far_place, near, near_place);       \
  }                                                                                            \
  PLACKET_SIMD void hardest_of(const TileRow<A>& row, const Search& search, A ceiling, A* far, \
                               A* near) {                                                      \
    hardest_columns<A>(row, search, ceiling, far, near);                                       \
  }                                                                                            \
  PLACKET_SIMD void kinds_by_label(const int64_t* labels, int64_t own, int64_t count,          \
                                   IntegerLike<A>* kinds) {                                    \
    for (int64_t c = 0; c < count; ++c) kinds[c] = labels[c] == own ? kPositive : kNegative;   \
  }                                                                                            \
  PLACKET_SIMD void kinds_by_set(const int64_t* sets, const int64_t* own, int64_t words,       \
                                 int64_t count, IntegerLike<A>* kinds) {                       \
    for (int64_t c = 0; c < count; ++c) {                                                      \
      int64_t shared = 0;                                                                      \
      for (int64_t w = 0; w < words; ++w) shared |= sets[c * words + w] & own[w];              \
      kinds[c] = shared != 0 ? kPositive : kNegative;                                          \
    }                                                                                          \
  }                                                                                            \
  PLACKET_SIMD void kinds_by_relation(const uint8_t* related, int64_t count,                   \
                                      IntegerLike<A>* kinds) {                                 \
    for (int64_t c = 0; c < count; ++c) kinds[c] = related[c] != 0 ? kPositive : kNegative;    \
  }                                                                                            \
  PLACKET_SIMD void leave_out_domain(const int64_t* domains, int64_t own, int64_t count,       \
                                     IntegerLike<A>* kinds) {                                  \
    const IntegerLike<A> neither = kNeither;                                                   \
    for (int64_t c = 0; c < count; ++c) kinds[c] = domains[c] == own ? neither : kinds[c];     \
  }

PLACKET_LEAVES(float)
PLACKET_LEAVES(double)
#undef PLACKET_LEAVES

// Rows [first, last) of a group that ends at `end`.
struct RowBlock {
  int64_t first, last, end;
};

std::vector<RowBlock> row_blocks(const int64_t* groups, int64_t count) {
  // Several blocks for each thread, as long as the products stay efficient; what a block computes
  // below the diagonal is lost.
  const int64_t share = count / (8 * omp_get_max_threads()) / 24 * 24;
  const int64_t rows = std::clamp<int64_t>(share, 24, kTileRows);
  std::vector<RowBlock> blocks;
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    while (end < count && (groups == nullptr || groups[end] == groups[begin])) ++end;
    for (int64_t r = begin; r < end; r += rows) blocks.push_back({r, std::min(r + rows, end), end});
  }
  return blocks;
}

// A thread's part of a pass.
template <class A>
class Scan {
 public:
  Scan(const BatchHard<A>& in, const Search& search, const A* ceilings, int64_t most_rows)
      : in_(in),
        search_(search),
        ceilings_(ceilings),
        found_(in.count),
        columns_(std::min(kTileColumns, in.count)),
        similarities_(most_rows * columns_),
        kinds_(columns_) {}

  const Found<A>& found() const { return found_; }

  void rows(const RowBlock& block) {
    for (int64_t c = block.first; c < block.end; c += columns_) {
      tile(block, c, std::min(c + columns_, block.end));
    }
  }

 private:
  void tile(const RowBlock& block, int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    products(in_.rows + block.first * in_.dims, in_.rows + begin * in_.dims,
             block.last - block.first, count, in_.dims, similarities_.data());
    for (int64_t r = block.first; r < block.last; ++r) {
      const TileRow<A> row = {similarities_.data() + (r - block.first) * count, kinds_.data(),
                              count};
      find_kinds(r, begin, count);
      if (r >= begin && r < end) kinds_[r - begin] = kNeither;
      take_columns(row, r, begin);
      // The columns of the block itself are its rows too.
      const int64_t skipped = std::clamp<int64_t>(block.last - begin, 0, count),
                    c = begin + skipped;
      offer({row.similarities + skipped, row.kinds + skipped, count - skipped}, search_,
            IntegerLike<A>(r), ceilings_ + c, found_.far.data() + c, found_.far_place.data() + c,
            found_.near.data() + c, found_.near_place.data() + c);
    }
  }

  void find_kinds(int64_t row, int64_t begin, int64_t count) {
    if (in_.relation != nullptr) {
      kinds_by_relation(in_.relation + row * in_.count + begin, count, kinds_.data());
    } else if (in_.words == 0) {
      kinds_by_label(in_.labels + begin, in_.labels[row], count, kinds_.data());
    } else {
      kinds_by_set(in_.labels + begin * in_.words, in_.labels + row * in_.words, in_.words, count,
                   kinds_.data());
    }
    if (in_.domains != nullptr) {
      leave_out_domain(in_.domains + begin, in_.domains[row], count, kinds_.data());
    }
  }

  void take_columns(const TileRow<A>& row, int64_t r, int64_t begin) {
    A far, near;
    hardest_of(row, search_, ceilings_[r], &far, &near);
    if (far > found_.far[r]) {
      found_.far[r] = far;
      found_.far_place[r] =
          begin + first(row, [&](int64_t c) {
            return row.kinds[c] == search_.far && hardness(row.similarities[c], A(-1)) == far;
          });
    }
    if (near > found_.near[r]) {
      found_.near[r] = near;
      found_.near_place[r] =
          begin + first(row, [&](int64_t c) {
            return row.kinds[c] == search_.near && hardness(row.similarities[c], A(1)) == near;
          });
    }
  }

  template <class F>
  static IntegerLike<A> first(const TileRow<A>& row, const F& is_it) {
    IntegerLike<A> c = 0;
    while (c < row.count && !is_it(c)) ++c;
    return c;
  }

  const BatchHard<A>& in_;
  const Search& search_;
  const A* ceilings_;
  Found<A> found_;
  int64_t columns_;
  std::vector<A> similarities_;  // of a tile
  std::vector<IntegerLike<A>> kinds_;
};

template <class A>
Found<A> find(const BatchHard<A>& in, const std::vector<RowBlock>& blocks, const Search& search,
              const A* ceilings) {
  int64_t most_rows = 0;
  for (const RowBlock& block : blocks) most_rows = std::max(most_rows, block.last - block.first);
  Found<A> all(in.count);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  // Threads take the blocks as they come, since the first of a group are the longest.
  parallel_for(0, int64_t(blocks.size()), 1, [&](int64_t, int64_t) {
    Scan<A> scan(in, search, ceilings, most_rows);
    for (size_t b; (b = next++) < blocks.size();) scan.rows(blocks[b]);
    const std::lock_guard<std::mutex> lock(mutex);
    all.take(scan.found());
  });
  return all;
}

}  // namespace

template <class A>
void batch_hard_cpu(const BatchHard<A>& in, const int64_t* order) {
  const std::vector<RowBlock> blocks = row_blocks(in.groups, in.count);
  std::vector<A> ceilings(in.count, kInfinity<A>);
  const Found<A> found = find(in, blocks, {kPositive, kNegative}, ceilings.data());
  const auto put = [&](const Hardest<A>& hardest, A sign, int64_t row, int64_t* index,
                       A* similarity) {
    index[order[row]] = hardest.place < 0 ? -1 : order[hardest.place];
    similarity[order[row]] = similarity_of(hardest, sign);
  };
  for (int64_t i = 0; i < in.count; ++i) {
    put(found.far_of(i), A(-1), i, in.positive, in.positive_similarity);
    put(found.near_of(i), A(1), i, in.negative, in.negative_similarity);
    if (found.far_of(i).place >= 0) ceilings[i] = similarity_of(found.far_of(i), A(-1));
  }
  if (!in.semi_hard) return;
  const Found<A> semi = find(in, blocks, {kNegative, kNegative}, ceilings.data());
  for (int64_t i = 0; i < in.count; ++i) {
    const bool none_below = semi.near_of(i).place < 0;
    put(none_below ? semi.far_of(i) : semi.near_of(i), none_below ? A(-1) : A(1), i, in.negative,
        in.negative_similarity);
  }
}

template void batch_hard_cpu(const BatchHard<float>&, const int64_t*);
template void batch_hard_cpu(const BatchHard<double>&, const int64_t*);

}  // namespace placket
