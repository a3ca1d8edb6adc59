#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace placket {

// Class centres kept online by an exponential average of the batches' means (MODC, ECCV 2022, as
// reconstructed; M3-Net, CVPR 2023, the same). With z_i the unit rows of class c, n_c of them:
//
//   centre_c <- normalise(momentum centre_c + (1 - momentum) sum_i z_i / n_c)
//
// A class without a row keeps its centre in every bit; one whose centre is zero, never seen, takes
// the direction of the mean. Norms are floored at 1e-12: a zero row counts but adds nothing, and
// where everything cancels the result is zero. A row of class -1 takes no part. NaN and infinity
// make their class's centre NaN. Embeddings are float32, bfloat16 or float64; everything else and
// all arithmetic is float32, for float64 embeddings float64.
//
// No gradient. Rows are added in ascending order by one thread or block for each class, without
// atomics, so equal calls give equal bits, on the CPU whatever the number of threads. Classes
// outside of [-1, M) are an error on the CPU; on CUDA, where a check would wait for the device,
// they take no part. Under autocast as without.
at::Tensor class_centres(const at::Tensor& centres,     // [M, E] unit rows or zero
                         const at::Tensor& embeddings,  // [V, E]
                         const at::Tensor& classes,     // [V] int64
                         double momentum);              // in [0, 1); returns [M, E]

// The same in two steps, between which several processes add up what each of them has. Only the
// ratio of sums and counts matters, which both have one dtype: a mean over the processes serves
// too.
std::tuple<at::Tensor, at::Tensor> class_sums(const at::Tensor& embeddings,  // [V, E]
                                              const at::Tensor& classes,     // [V] int64
                                              int64_t count);                // M
// returns sums [M, E] of the unit rows, counts [M]

at::Tensor class_centres_of_sums(const at::Tensor& centres,  // [M, E]
                                 const at::Tensor& sums,     // [M, E]
                                 const at::Tensor& counts,   // [M]
                                 double momentum);           // returns [M, E]

}  // namespace placket
