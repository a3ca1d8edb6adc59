#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace placket {

// The products of each row of x with each row of y, of which a tile or a strip of rows is there at
// a time; see ops/pair_contrast.h for the losses.

// What a row of y is to a row of x.
enum PairKind : int32_t { kLeftOut, kPositive, kNegative };

struct PairRelation {
  const int64_t* x_labels;  // [rows] or [rows, words], or null
  const int64_t* y_labels;  // [columns] or [columns, words], or null
  int64_t words;            // of a set of classes; 0: each row has one label
  const uint8_t* relation;  // [rows, columns], or null; without labels too the diagonal is positive
  const uint8_t* valid;     // [rows, columns], or null: all pairs are compared
  int64_t columns;

  PLACKET_HOST_DEVICE bool diagonal() const { return x_labels == nullptr && relation == nullptr; }

  PLACKET_HOST_DEVICE PairKind kind(int64_t i, int64_t j) const {
    if (valid != nullptr && valid[i * columns + j] == 0) return kLeftOut;
    if (relation != nullptr) return relation[i * columns + j] != 0 ? kPositive : kNegative;
    if (diagonal()) return i == j ? kPositive : kNegative;
    if (words == 0) {
      if (x_labels[i] < 0 || y_labels[j] < 0) return kLeftOut;
      return x_labels[i] == y_labels[j] ? kPositive : kNegative;
    }
    int64_t x = 0, y = 0, shared = 0;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t a = x_labels[i * words + w], b = y_labels[j * words + w];
      x |= a;
      y |= b;
      shared |= a & b;
    }
    return x == 0 || y == 0 ? kLeftOut : shared != 0 ? kPositive : kNegative;
  }
};

// Logits are scale * x.y + bias.
template <class A>
struct PairLogits {
  const A* x;  // [rows, dims]
  const A* y;  // [columns, dims]
  int64_t rows;
  int64_t columns;
  int64_t dims;
  A scale;
  A bias;
  PairRelation pairs;
};

// What the forward pass of InfoNCE finds for each row, or for each column; all null: not asked for.
template <class A>
struct PairStatistics {
  A* lse;           // log of the sum of exp over compared pairs, -infinity without any
  A* positive_sum;  // of logits
  A* positives;     // how many
};

// The gradient in the logit of a pair is weight exp(logit - lse), less `target` of a positive; for
// its row and its column, which may be null.
template <class A>
struct PairWeights {
  const A* lse;
  const A* weight;
  const A* target;
};

// Gradients in rows as far as the products with the logits' gradients, not yet multiplied by scale;
// null where not asked for. Rows are `stride` apart, a multiple of kMostTileItems.
template <class A>
struct PairGradients {
  A* x;
  A* y;
  int64_t stride;
};

template <class A>
void info_nce_cpu(const PairLogits<A>& in, const PairStatistics<A>& rows,
                  const PairStatistics<A>& columns);
template <class A>
void info_nce_backward_cpu(const PairLogits<A>& in, const PairWeights<A>& rows,
                           const PairWeights<A>& columns, const PairGradients<A>& out);

// Over compared pairs: the sums of log(1 + exp(-+ logit)) and of its derivative in the logit;
// compared[i]: whether row i has such a pair.
template <class A>
void pairwise_sigmoid_cpu(const PairLogits<A>& in, const PairGradients<A>& out, uint8_t* compared,
                          A* loss, A* grad_bias);

// The sum of x[i][d] * y[i][d], rows of y `stride` apart.
template <class A>
A row_products_cpu(const A* x, const A* y, int64_t rows, int64_t dims, int64_t stride);

// A strip of rows from `first` on and their products with every row of y.
template <class A>
struct PairStrip {
  const A* products;  // [rows, columns]
  int64_t first;
  int64_t rows;
  int64_t columns;
  const A* scale;  // on the device, as is bias; a null bias is 0
  const A* bias;
  PairRelation pairs;
};

// Of the strip's rows, and of all columns, to which it adds: `high` and `sum` hold the largest
// logit and the sum of exp(logit - high) so far.
template <class A>
struct PairColumns {
  A* high;
  A* sum;
  A* positive_sum;
  A* positives;
};

template <class A>
const char* launch_info_nce_rows(const PairStrip<A>& strip, const PairStatistics<A>& rows,
                                 Stream stream);
template <class A>
const char* launch_info_nce_columns(const PairStrip<A>& strip, const PairColumns<A>& columns,
                                    Stream stream);
// Gradients in the strip's logits, T either A or BFloat16.
template <class A, class T>
const char* launch_info_nce_gradient(const PairStrip<A>& strip, const PairWeights<A>& rows,
                                     const PairWeights<A>& columns, T* gradient, Stream stream);
// Sums of a row of the strip, [rows]; `gradient` may be null.
template <class A>
struct PairRowSums {
  A* loss;
  A* grad_bias;
  uint8_t* compared;
};
template <class A, class T>
const char* launch_pairwise_sigmoid(const PairStrip<A>& strip, const PairRowSums<A>& rows,
                                    T* gradient, Stream stream);

}  // namespace placket
