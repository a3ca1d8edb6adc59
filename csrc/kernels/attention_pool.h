#pragma once

#include <cstdint>

#include "base/bfloat16.h"
#include "base/host_device.h"

namespace placket {

// Sums of the values over positions, under each attribute's weights and under none, in one read of
// the values; see ops/attention_pool.h for the formula. For few attributes: beyond, a GEMM reads
// its operands less often.
template <class T>
struct AttentionPool {
  static constexpr int64_t kMaxAttributes = 16;

  const accumulate_t<T>* weights;  // [images, attributes, positions]
  const T* values;                 // [images, channels, positions], or with channels_last
                                   // [images, positions, channels]
  int64_t images;
  int64_t attributes;  // at most kMaxAttributes; 0 leaves the plain sum
  int64_t channels;
  int64_t positions;
  bool channels_last;
  T* pooled;              // [images, attributes, channels]
  accumulate_t<T>* sums;  // [images, channels]; may be null
};

template <class T>
void attention_pool_cpu(const AttentionPool<T>& pass);
template <class T>
const char* launch_attention_pool(const AttentionPool<T>& pass, Stream stream);

}  // namespace placket
