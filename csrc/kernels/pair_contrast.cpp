#include "kernels/pair_contrast.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "base/parallel.h"
#include "base/simd.h"
#include "kernels/dot_kernel.h"
#include "kernels/lanes.h"

// The matrix of logits is a grid of square tiles. In a round no two tiles share a row or a column,
// so that each adds to what belongs to its rows and columns alone, and the order in which a row
// meets its tiles is a matter of the shapes: bits do not depend on threads. Both operands are
// packed into panels once, in the two orders that the products need; a tile of logits and its
// transpose stay in the second-level cache.
namespace placket {
namespace {

constexpr int64_t kMostEdge = 192;
static_assert(kMostEdge <= kDotBlock && kMostEdge % kMostTileItems == 0);

// The largest edge with enough tiles for several threads.
int64_t tile_edge(int64_t rows, int64_t columns) {
  constexpr int64_t kEnough = 16;
  for (const int64_t edge : {kMostEdge, int64_t{96}, int64_t{64}}) {
    if (((rows + edge - 1) / edge) * ((columns + edge - 1) / edge) >= kEnough) return edge;
  }
  return kMostTileItems;
}

template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : values_(static_cast<A*>(::operator new(size_t(count) * sizeof(A), kAlignment))) {}

  A* get() const { return values_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(A* values) const { ::operator delete(values, kAlignment); }
  };
  std::unique_ptr<A, Delete> values_;
};

// The loss of a pair and its derivative in the logit, with u = exp(-|logit|).
template <class A>
inline __attribute__((always_inline)) void sigmoid_terms(A* __restrict z,
                                                         const int32_t* __restrict kinds,
                                                         A* __restrict loss, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A u = exp_of(z[i] < 0 ? z[i] : -z[i]);
    const bool positive = kinds[i] == kPositive, compared = kinds[i] != kLeftOut;
    const A wrong = positive ? -z[i] : z[i];  // the loss is softplus of it
    const A share = (wrong > 0 ? A(1) : u) / (1 + u);
    loss[i] = compared ? (wrong > 0 ? wrong : A(0)) + log1p_of(u) : A(0);
    z[i] = compared ? (positive ? -share : share) : A(0);
  }
}

#define PLACKET_LEAVES(A)                                                                         \
  PLACKET_SIMD A sum_of(const A* x, int64_t count) { return lane_sum(x, count); }                 \
  PLACKET_SIMD A largest_of(const A* x, int64_t count) { return largest(x, count); }              \
  PLACKET_SIMD void to_logits(A* z, int64_t count, A scale, A bias) {                             \
    for (int64_t i = 0; i < count; ++i) z[i] = z[i] * scale + bias;                               \
  }                                                                                               \
  PLACKET_SIMD void leave_out(A* __restrict z, const int32_t* __restrict kinds, int64_t count) {  \
    for (int64_t i = 0; i < count; ++i) z[i] = kinds[i] == kLeftOut ? A(-INFINITY) : z[i];        \
  }                                                                                               \
  PLACKET_SIMD void positives_of(const A* __restrict z, const int32_t* __restrict kinds,          \
                                 int64_t count, A* __restrict values, A* __restrict ones) {       \
    for (int64_t i = 0; i < count; ++i) {                                                         \
      values[i] = kinds[i] == kPositive ? z[i] : A(0);                                            \
      ones[i] = kinds[i] == kPositive ? A(1) : A(0);                                              \
    }                                                                                             \
  }                                                                                               \
  PLACKET_SIMD void add_to(A* __restrict sums, const A* __restrict x, int64_t count) {            \
    for (int64_t i = 0; i < count; ++i) sums[i] += x[i];                                          \
  }                                                                                               \
  PLACKET_SIMD void raise_to(A* __restrict high, const A* __restrict z, int64_t count) {          \
    for (int64_t i = 0; i < count; ++i) high[i] = z[i] > high[i] ? z[i] : high[i];                \
  }                                                                                               \
  PLACKET_SIMD void exp_from(const A* __restrict z, A shift, A* __restrict out, int64_t count) {  \
    for (int64_t i = 0; i < count; ++i) out[i] = exp_of(z[i] - shift);                            \
  }                                                                                               \
  PLACKET_SIMD void add_exp(A* __restrict sums, const A* __restrict z, const A* __restrict shift, \
                            int64_t count) {                                                      \
    for (int64_t i = 0; i < count; ++i) sums[i] += exp_of(z[i] - shift[i]);                       \
  }                                                                                               \
  PLACKET_SIMD void row_share(A* z, int64_t count, A lse, A weight) {                             \
    for (int64_t i = 0; i < count; ++i) z[i] = weight * exp_of(z[i] - lse);                       \
  }                                                                                               \
  PLACKET_SIMD void both_shares(A* __restrict z, int64_t count, A lse, A weight,                  \
                                const A* __restrict lses, const A* __restrict weights) {          \
    for (int64_t i = 0; i < count; ++i) {                                                         \
      z[i] = weight * exp_of(z[i] - lse) + weights[i] * exp_of(z[i] - lses[i]);                   \
    }                                                                                             \
  }                                                                                               \
  PLACKET_SIMD void sigmoid_row(A* z, const int32_t* kinds, A* loss, int64_t count) {             \
    sigmoid_terms(z, kinds, loss, count);                                                         \
  }                                                                                               \
  PLACKET_SIMD A product_of(const A* x, const A* y, A* __restrict products, int64_t count) {      \
    for (int64_t i = 0; i < count; ++i) products[i] = x[i] * y[i];                                \
    return lane_sum(products, count);                                                             \
  }

PLACKET_LEAVES(float)
PLACKET_LEAVES(double)
#undef PLACKET_LEAVES

PLACKET_SIMD void kinds_by_label(int64_t own, const int64_t* labels, int64_t count,
                                 int32_t* kinds) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t compared = labels[i] == own ? kPositive : kNegative;
    kinds[i] = own < 0 || labels[i] < 0 ? kLeftOut : compared;
  }
}

PLACKET_SIMD void kinds_by_relation(const uint8_t* related, int64_t count, int32_t* kinds) {
  for (int64_t i = 0; i < count; ++i) kinds[i] = related[i] != 0 ? kPositive : kNegative;
}

PLACKET_SIMD void keep_valid(const uint8_t* valid, int64_t count, int32_t* kinds) {
  for (int64_t i = 0; i < count; ++i) kinds[i] = valid[i] != 0 ? kinds[i] : int32_t{kLeftOut};
}

// Rows [row, row + rows) and columns [column, column + columns).
struct Tile {
  int64_t row, rows, column, columns;
};

// A thread's memory for a tile; rows of logits are kDotBlock apart.
template <class A>
struct Scratch {
  Buffer<A> logits, transposed;
  A values[kMostEdge], more[kMostEdge], highest[kMostEdge];
  int32_t kinds[kMostEdge];

  explicit Scratch(int64_t edge) : logits(edge * kDotBlock), transposed(edge * kDotBlock) {}

  A* row(int64_t r) const { return logits.get() + r * kDotBlock; }
};

// Rows of a matrix as panels of some of its columns each, [panels, rows, items].
template <class A>
class ColumnPanels {
 public:
  ColumnPanels(const A* matrix, int64_t rows, int64_t dims)
      : width_(dot_kernel<A>().items),
        rows_(rows),
        panels_((dims + width_ - 1) / width_),
        packed_(panels_ * rows * width_) {
    parallel_for(0, rows, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(dims, 1)),
                 [&](int64_t first, int64_t last) {
                   for (int64_t r = first; r < last; ++r) pack(matrix + r * dims, r, dims);
                 });
  }

  // out[i] += sum over k of a[i][k] * row `first` + k of the matrix.
  void add_product(const A* a, int64_t count, int64_t first, int64_t depth, A* out,
                   int64_t stride) const;

 private:
  void pack(const A* row, int64_t r, int64_t dims) {
    for (int64_t p = 0; p < panels_; ++p) {
      A* panel = packed_.get() + (p * rows_ + r) * width_;
      const int64_t there = std::min(width_, dims - p * width_);
      std::copy_n(row + p * width_, there, panel);
      std::fill(panel + there, panel + width_, A(0));
    }
  }

  int64_t width_, rows_, panels_;
  Buffer<A> packed_;
};

// out (+)= a times a panel; rows of a are kDotBlock apart.
template <class A>
void multiply(const A* a, int64_t rows, const A* panel, int64_t depth, A* out, int64_t stride,
              bool add) {
  const DotKernel<A>& kernel = dot_kernel<A>();
  const int64_t tiles = (rows + kernel.queries - 1) / kernel.queries;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    kernel.tiles[last - first - 1](a + first * kDotBlock, panel, depth, out + first * stride,
                                   stride, add);
  }
}

template <class A>
void ColumnPanels<A>::add_product(const A* a, int64_t count, int64_t first, int64_t depth, A* out,
                                  int64_t stride) const {
  for (int64_t p = 0; p < panels_; ++p) {
    multiply(a, count, packed_.get() + (p * rows_ + first) * width_, depth, out + p * width_,
             stride, /*add=*/true);
  }
}

template <class A>
class Grid {
 public:
  explicit Grid(const PairLogits<A>& in)
      : in_(in),
        edge_(tile_edge(in.rows, in.columns)),
        width_(dot_kernel<A>().items),
        blocks_((in.dims + kDotBlock - 1) / kDotBlock),
        x_(blocks_ * in.rows * kDotBlock),
        y_((in.columns + width_ - 1) / width_ * width_ * in.dims) {
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(in.dims, 1));
    parallel_for(0, in.rows, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) pack_row(i);
    });
    parallel_for(0, (in.columns + width_ - 1) / width_, (grain + width_ - 1) / width_,
                 [&](int64_t first, int64_t last) {
                   for (int64_t p = first; p < last; ++p) pack_panel(p);
                 });
  }

  int64_t edge() const { return edge_; }
  int64_t row_blocks() const { return (in_.rows + edge_ - 1) / edge_; }

  // Calls f(tile, scratch) for every tile, with the tile's products in the scratch.
  template <class F>
  void for_each(const F& f) const {
    const int64_t down = row_blocks(), across = (in_.columns + edge_ - 1) / edge_;
    const int64_t few = std::min(down, across), many = std::max(down, across);
    for (int64_t round = 0; round < many; ++round) {
      parallel_for(0, few, 1, [&](int64_t first, int64_t last) {
        Scratch<A> scratch(edge_);
        for (int64_t k = first; k < last; ++k) {
          const int64_t other = (k + round) % many;
          const int64_t row = (down <= across ? k : other) * edge_;
          const int64_t column = (down <= across ? other : k) * edge_;
          const Tile tile = {row, std::min(edge_, in_.rows - row), column,
                             std::min(edge_, in_.columns - column)};
          products(tile, scratch.logits.get());
          f(tile, scratch);
        }
      });
    }
  }

 private:
  void pack_row(int64_t i) {
    for (int64_t b = 0; b < blocks_; ++b) {
      std::copy_n(in_.x + i * in_.dims + b * kDotBlock,
                  std::min(kDotBlock, in_.dims - b * kDotBlock),
                  x_.get() + (b * in_.rows + i) * kDotBlock);
    }
  }

  // Rows of y, transposed, with zeros for those that are not there.
  void pack_panel(int64_t p) {
    A* panel = y_.get() + p * width_ * in_.dims;
    const int64_t there = std::min(width_, in_.columns - p * width_);
    const int64_t whole = in_.dims / 8 * 8;
    const A* rows = in_.y + p * width_ * in_.dims;
    if (there < width_) std::fill_n(panel, width_ * in_.dims, A(0));
    for (int64_t i = 0; i < there; i += 8) {
      const bool eight = i + 8 <= there;
      if (eight) {
        dot_kernel<A>().transpose(rows + i * in_.dims, in_.dims, whole, panel + i, width_);
      }
      for (int64_t r = i; r < std::min(i + 8, there); ++r) {
        for (int64_t d = eight ? whole : 0; d < in_.dims; ++d) {
          panel[d * width_ + r] = rows[r * in_.dims + d];
        }
      }
    }
  }

  void products(const Tile& tile, A* out) const {
    if (in_.dims == 0) std::fill_n(out, tile.rows * kDotBlock, A(0));
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t depth = std::min(kDotBlock, in_.dims - b * kDotBlock);
      const A* rows = x_.get() + (b * in_.rows + tile.row) * kDotBlock;
      for (int64_t c = 0; c < tile.columns; c += width_) {
        const A* panel = y_.get() + (tile.column + c) * in_.dims + b * kDotBlock * width_;
        multiply(rows, tile.rows, panel, depth, out + c, kDotBlock, /*add=*/b > 0);
      }
    }
  }

  const PairLogits<A>& in_;
  int64_t edge_, width_, blocks_;
  Buffer<A> x_;  // [blocks of dimensions, rows, kDotBlock]
  Buffer<A> y_;  // [panels, dims, items]
};

// Whether a tile has negatives alone.
bool plain(const PairRelation& pairs, const Tile& tile) {
  return pairs.diagonal() && pairs.valid == nullptr &&
         (tile.row + tile.rows <= tile.column || tile.column + tile.columns <= tile.row);
}

// Of row i and the tile's columns.
void find_kinds(const PairRelation& pairs, int64_t i, const Tile& tile, int32_t* kinds) {
  const int64_t count = tile.columns;
  if (pairs.relation != nullptr) {
    kinds_by_relation(pairs.relation + i * pairs.columns + tile.column, count, kinds);
  } else if (pairs.diagonal()) {
    std::fill_n(kinds, count, int32_t{kNegative});
    if (i >= tile.column && i < tile.column + count) kinds[i - tile.column] = kPositive;
  } else if (pairs.words == 0) {
    kinds_by_label(pairs.x_labels[i], pairs.y_labels + tile.column, count, kinds);
  } else {
    for (int64_t c = 0; c < count; ++c) kinds[c] = pairs.kind(i, tile.column + c);
  }
  if (pairs.valid != nullptr) {
    keep_valid(pairs.valid + i * pairs.columns + tile.column, count, kinds);
  }
}

// What is subtracted from logits before exp.
template <class A>
A shift_of(A highest) {
  return highest == A(-INFINITY) ? A(0) : highest;
}

// The largest logit and the sum of exp(logit - largest) of each row or column so far.
template <class A>
struct Running {
  std::vector<A> high, sum;

  explicit Running(int64_t count) : high(count, A(-INFINITY)), sum(count, A(0)) {}

  void raise(int64_t i, A highest) {
    if (!(highest > high[i])) return;
    sum[i] *= std::exp(high[i] - highest);
    high[i] = highest;
  }

  void write(A* lse) const {
    for (size_t i = 0; i < high.size(); ++i) lse[i] = high[i] + std::log(sum[i]);
  }
};

template <class A>
void transpose(const A* from, int64_t rows, int64_t columns, A* to) {
  constexpr int64_t kBlock = 8;
  for (int64_t r = 0; r < rows; r += kBlock) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t i = r; i < std::min(r + kBlock, rows); ++i) {
        to[c * kDotBlock + i] = from[i * kDotBlock + c];
      }
    }
  }
}

// Gradients in rows, of the gradients in the logits of one tile after another.
template <class A>
class RowGradients {
 public:
  RowGradients(const PairLogits<A>& in, const PairGradients<A>& out)
      : out_(out),
        x_(in.x, out.y != nullptr ? in.rows : 0, in.dims),
        y_(in.y, out.x != nullptr ? in.columns : 0, in.dims) {
    if (out.x != nullptr) std::fill_n(out.x, in.rows * out.stride, A(0));
    if (out.y != nullptr) std::fill_n(out.y, in.columns * out.stride, A(0));
  }

  void add(const Tile& tile, const Scratch<A>& scratch) const {
    if (out_.x != nullptr) {
      y_.add_product(scratch.logits.get(), tile.rows, tile.column, tile.columns,
                     out_.x + tile.row * out_.stride, out_.stride);
    }
    if (out_.y != nullptr) {
      transpose(scratch.logits.get(), tile.rows, tile.columns, scratch.transposed.get());
      x_.add_product(scratch.transposed.get(), tile.columns, tile.row, tile.rows,
                     out_.y + tile.column * out_.stride, out_.stride);
    }
  }

 private:
  PairGradients<A> out_;
  ColumnPanels<A> x_, y_;
};

}  // namespace

template <class A>
void info_nce_cpu(const PairLogits<A>& in, const PairStatistics<A>& rows,
                  const PairStatistics<A>& columns) {
  const bool both = columns.lse != nullptr;
  Running<A> of_rows(in.rows), of_columns(both ? in.columns : 0);
  std::fill_n(rows.positive_sum, in.rows, A(0));
  std::fill_n(rows.positives, in.rows, A(0));
  if (both) {
    std::fill_n(columns.positive_sum, in.columns, A(0));
    std::fill_n(columns.positives, in.columns, A(0));
  }
  Grid<A>(in).for_each([&](const Tile& tile, Scratch<A>& scratch) {
    const int64_t count = tile.columns;
    std::fill_n(scratch.highest, count, A(-INFINITY));
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t i = tile.row + r;
      A* z = scratch.row(r);
      to_logits(z, count, in.scale, in.bias);
      if (!plain(in.pairs, tile)) {
        find_kinds(in.pairs, i, tile, scratch.kinds);
        leave_out(z, scratch.kinds, count);
        positives_of(z, scratch.kinds, count, scratch.values, scratch.more);
        rows.positive_sum[i] += sum_of(scratch.values, count);
        rows.positives[i] += sum_of(scratch.more, count);
        if (both) {
          add_to(columns.positive_sum + tile.column, scratch.values, count);
          add_to(columns.positives + tile.column, scratch.more, count);
        }
      }
      of_rows.raise(i, largest_of(z, count));
      if (both) raise_to(scratch.highest, z, count);
    }
    A* shifts = scratch.highest;
    for (int64_t c = 0; both && c < count; ++c) {
      of_columns.raise(tile.column + c, scratch.highest[c]);
      shifts[c] = shift_of(of_columns.high[tile.column + c]);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t i = tile.row + r;
      exp_from(scratch.row(r), shift_of(of_rows.high[i]), scratch.values, count);
      of_rows.sum[i] += sum_of(scratch.values, count);
      if (both) add_exp(of_columns.sum.data() + tile.column, scratch.row(r), shifts, count);
    }
  });
  of_rows.write(rows.lse);
  if (both) of_columns.write(columns.lse);
}

template <class A>
void info_nce_backward_cpu(const PairLogits<A>& in, const PairWeights<A>& rows,
                           const PairWeights<A>& columns, const PairGradients<A>& out) {
  const bool both = columns.lse != nullptr;
  const RowGradients<A> gradients(in, out);
  Grid<A>(in).for_each([&](const Tile& tile, Scratch<A>& scratch) {
    const int64_t count = tile.columns;
    const bool negatives_alone = plain(in.pairs, tile);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t i = tile.row + r;
      A* z = scratch.row(r);
      to_logits(z, count, in.scale, in.bias);
      if (!negatives_alone) {
        find_kinds(in.pairs, i, tile, scratch.kinds);
        leave_out(z, scratch.kinds, count);
      }
      if (both) {
        both_shares(z, count, rows.lse[i], rows.weight[i], columns.lse + tile.column,
                    columns.weight + tile.column);
      } else {
        row_share(z, count, rows.lse[i], rows.weight[i]);
      }
      for (int64_t c = 0; !negatives_alone && c < count; ++c) {
        if (scratch.kinds[c] != kPositive) continue;
        z[c] -= rows.target[i] + (both ? columns.target[tile.column + c] : A(0));
      }
    }
    gradients.add(tile, scratch);
  });
}

template <class A>
void pairwise_sigmoid_cpu(const PairLogits<A>& in, const PairGradients<A>& out, uint8_t* compared,
                          A* loss, A* grad_bias) {
  const Grid<A> grid(in);
  const RowGradients<A> gradients(in, out);
  std::vector<double> losses(grid.row_blocks()), biases(grid.row_blocks());
  std::fill_n(compared, in.rows, uint8_t{0});
  grid.for_each([&](const Tile& tile, Scratch<A>& scratch) {
    const int64_t count = tile.columns, block = tile.row / grid.edge();
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t i = tile.row + r;
      A* z = scratch.row(r);
      to_logits(z, count, in.scale, in.bias);
      find_kinds(in.pairs, i, tile, scratch.kinds);
      sigmoid_row(z, scratch.kinds, scratch.values, count);
      losses[block] += sum_of(scratch.values, count);
      biases[block] += sum_of(z, count);
      const auto is_compared = [](int32_t kind) { return kind != kLeftOut; };
      compared[i] |= std::any_of(scratch.kinds, scratch.kinds + count, is_compared);
    }
    gradients.add(tile, scratch);
  });
  *loss = A(std::accumulate(losses.begin(), losses.end(), 0.0));
  *grad_bias = A(std::accumulate(biases.begin(), biases.end(), 0.0));
}

template <class A>
A row_products_cpu(const A* x, const A* y, int64_t rows, int64_t dims, int64_t stride) {
  std::vector<A> sums(rows);
  parallel_for(0, rows, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(dims, 1)),
               [&](int64_t first, int64_t last) {
                 const Buffer<A> products(dims);
                 for (int64_t i = first; i < last; ++i) {
                   sums[i] = product_of(x + i * dims, y + i * stride, products.get(), dims);
                 }
               });
  return A(std::accumulate(sums.begin(), sums.end(), 0.0));
}

#define PLACKET_INSTANTIATE(A)                                                                    \
  template void info_nce_cpu(const PairLogits<A>&, const PairStatistics<A>&,                      \
                             const PairStatistics<A>&);                                           \
  template void info_nce_backward_cpu(const PairLogits<A>&, const PairWeights<A>&,                \
                                      const PairWeights<A>&, const PairGradients<A>&);            \
  template void pairwise_sigmoid_cpu(const PairLogits<A>&, const PairGradients<A>&, uint8_t*, A*, \
                                     A*);                                                         \
  template A row_products_cpu(const A*, const A*, int64_t, int64_t, int64_t)

PLACKET_INSTANTIATE(float);
PLACKET_INSTANTIATE(double);
#undef PLACKET_INSTANTIATE

}  // namespace placket
