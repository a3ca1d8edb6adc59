#pragma once

#include <cstdint>

#include "base/bfloat16.h"
#include "base/host_device.h"

namespace placket {

// Rows are the positions of a channels_last map, [groups * rows, channels]; see
// ops/batch_norm_act.h for the formula. Statistics and parameters are in the accumulation type of
// T.
struct BatchNormShape {
  int64_t groups;
  int64_t rows;  // of one group
  int64_t channels;

  // Rows whose sums are kept together; fixed, so that sums do not depend on the number of threads.
  static constexpr int64_t kChunk = 512;
  PLACKET_HOST_DEVICE int64_t chunks() const { return (rows + kChunk - 1) / kChunk; }
  // Elements of workspace, in the accumulation type: two sums for each group, chunk and channel.
  int64_t workspace() const { return 2 * groups * chunks() * channels; }
};

template <class T>
struct BatchNormForward {
  BatchNormShape shape;
  const T* input;
  const T* residual;  // may be null
  const accumulate_t<T>* weight;
  const accumulate_t<T>* bias;
  double eps;
  bool relu;
  accumulate_t<T>* workspace;
  T* output;
  accumulate_t<T>* mean;      // [groups, channels]
  accumulate_t<T>* variance;  // [groups, channels], biased
};

template <class T>
struct BatchNormBackward {
  BatchNormShape shape;
  const T* grad;
  const T* input;
  const T* output;  // null without relu
  const accumulate_t<T>* weight;
  const accumulate_t<T>* mean;
  const accumulate_t<T>* variance;
  double eps;
  accumulate_t<T>* workspace;
  accumulate_t<T>* sums;  // [2, groups, channels]: of grad, and of grad times the normalised input
  T* grad_input;
  T* grad_residual;  // may be null
};

template <class T>
void batch_norm_act_cpu(const BatchNormForward<T>& pass);
template <class T>
void batch_norm_act_backward_cpu(const BatchNormBackward<T>& pass);

template <class T>
const char* launch_batch_norm_act(const BatchNormForward<T>& pass, Stream stream);
template <class T>
const char* launch_batch_norm_act_backward(const BatchNormBackward<T>& pass, Stream stream);

}  // namespace placket
