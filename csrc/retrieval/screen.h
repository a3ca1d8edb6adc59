#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "retrieval/top_k.h"

namespace placket {

// Upper bounds of the scores of RowScorer from rows in fewer bits (`quantize`).
//
// Of one space, with q^ the query in 7 or 14 bits (for bfloat16 rows in bfloat16, or q itself) and
// x^ the row's codes times their scale, by Cauchy-Schwarz
//
//   <q, x> = <q^, x^> + <q, x - x^> + <q - q^, x^> <= <q^, x^> + |q| residual + |q - q^| norm,
//
// and what float32 loses in either sum is at most (D + a few) 2^-24 |q| norm, whatever the order.
class Screen {
 public:
  Screen(at::TensorList queries,         // [S] of [Q, D_s] float32
         at::TensorList codes,           // [S] of [N, D_s] int8 or bfloat16, contiguous
         at::TensorList bounds,          // [S] of [N, 3] float32, contiguous
         at::ArrayRef<double> weights);  // [S]

  // Whether nothing overflows and no underflow exceeds kUnderflow: queries and weights are numbers
  // of moderate size.
  bool holds() const { return holds_; }

  struct alignas(64) Line {
    int8_t bytes[64];
  };
  struct Scratch {
    std::vector<Line> panel;
    std::vector<int32_t> sums;
    std::vector<float> rows, dots, bounds;
  };

  // Of the queries [begin, end), to upper [end - begin, rows.count].
  void upper_bounds(int64_t begin, int64_t end, const RowSpan& rows, Scratch& scratch,
                    float* upper) const;

  // A smaller bound for more work, from more bits of the query. Only where all codes are int8, and
  // more than 7 bits of every query would make the others too slow.
  bool refines() const { return refines_; }
  float refined(int64_t query, int64_t row) const;

 private:
  // A query's part of a bound: step * scale * sum + spread * residual + slope * norm.
  struct Terms {
    float step, spread, slope;
  };
  struct Space {
    at::Tensor codes, bounds;
    std::vector<Terms> terms;  // [Q]
    at::Tensor queries;        // of float32, for bfloat16 rows: [Q, a multiple of kDotLanes]
    // Where panels are used, [Q, digits, padded] bytes; for int8 digits of base kBase, the highest
    // first, and ones beside them [1, padded].
    at::Tensor packed, ones;
    int64_t digits = 1, padded = 0;
    std::vector<int16_t> fine;  // [Q, D], where the screen refines
    std::vector<Terms> fine_terms;
  };

  void set_terms(Space& space, const at::Tensor& queries, double weight, double rounding);
  void add_int8(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                Scratch& scratch, float* upper) const;
  void add_bfloat16(const Space& space, int64_t begin, int64_t end, const RowSpan& rows,
                    Scratch& scratch, float* upper) const;

  static void dots_of_few(const Space& space, int64_t begin, int64_t queries, const RowSpan& rows,
                          float* dots);
  static void widened_dots(const Space& space, int64_t begin, int64_t queries, const RowSpan& rows,
                           Scratch& scratch);

  std::vector<Space> spaces_;
  bool holds_ = true, refines_ = true;
};

}  // namespace placket
