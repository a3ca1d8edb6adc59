#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace placket {

// Rows are contiguous; see ops/gated_fusion.h for the formula.
template <class T>
struct GatedFusion {
  const T* gate_logits;       // [rows, dims]
  const T* selection_logits;  // [rows]
  const T* image;             // [rows, dims], as are the three below
  const T* text;
  const T* image_clip;
  const T* text_clip;
  int64_t rows;
  int64_t dims;
};

// Of the inputs, in their shapes.
template <class T>
struct GatedFusionGradients {
  T* gate_logits;
  T* selection_logits;
  T* image;
  T* text;
  T* image_clip;  // both null where they are not wanted
  T* text_clip;
};

template <class T>
void gated_fusion_cpu(const GatedFusion<T>& in, T* query, T* image_share);
template <class T>
void gated_fusion_backward_cpu(const GatedFusion<T>& in, const T* grad,
                               const GatedFusionGradients<T>& out);

template <class T>
const char* launch_gated_fusion(const GatedFusion<T>& in, T* query, T* image_share, Stream stream);
template <class T>
const char* launch_gated_fusion_backward(const GatedFusion<T>& in, const T* grad,
                                         const GatedFusionGradients<T>& out, Stream stream);

}  // namespace placket
