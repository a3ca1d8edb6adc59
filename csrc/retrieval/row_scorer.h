#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "retrieval/top_k.h"

namespace placket {

// The score of query and row is sum_s weights[s] * <queries[s], database[s]>: dot products as
// dot_scores_cpu has them, each product with a weight rounded to float32, then added in the order
// of the spaces. So it is a function of these two and the weights alone.
class RowScorer {
 public:
  RowScorer(at::TensorList queries,         // [S] of [Q, D_s] float32
            at::TensorList database,        // [S] of [N, D_s] float32, contiguous
            at::ArrayRef<double> weights);  // [S]

  // What a thread needs to work in.
  struct Scratch {
    std::vector<float> rows, dots;
    std::vector<const float*> listed;
  };

  int64_t spaces() const { return int64_t(spaces_.size()); }

  // Of the queries [begin, end), to scores [end - begin, rows.count].
  void score(int64_t begin, int64_t end, const RowSpan& rows, Scratch& scratch,
             float* scores) const;

  // The dot products of one query, to parts [rows.count, S].
  void parts(int64_t query, const RowSpan& rows, Scratch& scratch, float* parts) const;

 private:
  struct Space {
    at::Tensor queries;  // [Q, padded]
    const float* rows;
    int64_t dims, padded;
    float weight;
  };

  static void dots(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                   Scratch& scratch, float* scores);

  std::vector<Space> spaces_;
};

}  // namespace placket
