#pragma once

#include <cstdint>

#include "base/bfloat16.h"
#include "base/host_device.h"

namespace placket {

// Between the GEMMs of region_patch_info_nce; see ops/region_patch_info_nce.h for the formula. All
// rows are in the order of their attribute, so that the rows of one attribute are neighbours;
// `order` says which row of the operator's arguments each one is.

// Rows below this norm have no direction; it is the eps of torch.nn.functional.normalize.
constexpr double kUnitFloor = 1e-12;

template <class T>
struct UnitRows {
  const T* input;        // [rows, dims]
  const int64_t* order;  // [rows]
  int64_t rows;
  int64_t dims;
  accumulate_t<T>* unit;     // [rows, dims]
  accumulate_t<T>* inverse;  // [rows], 1 / norm
};

template <class T>
struct UnitRowsBackward {
  const accumulate_t<T>* grad;     // of unit
  const accumulate_t<T>* unit;     // [rows, dims]
  const accumulate_t<T>* inverse;  // [rows]
  const int64_t* order;            // [rows]
  int64_t rows;
  int64_t dims;
  T* grad_input;  // [rows, dims]
};

// A block of anchors and its cosines with every patch and with the backgrounds of a range of rows
// that holds all rows of the anchors' attributes. The kernels use the cosines as working memory.
template <class A>
struct ContrastBlock {
  const int64_t* labels;  // [rows]
  const int64_t* begin;   // [rows], the rows of a row's attribute are [begin, end)
  const int64_t* end;     // [rows]
  int64_t first;          // row of the first anchor
  int64_t anchors;
  int64_t rows;
  int64_t backgrounds_first;
  int64_t backgrounds;  // 0 leaves them out
  double temperature;
  double alpha;
  A* patch;       // [anchors, rows]
  A* background;  // [anchors, backgrounds]
};

template <class T>
void unit_rows_cpu(const UnitRows<T>& pass);
template <class T>
void unit_rows_backward_cpu(const UnitRowsBackward<T>& pass);
// loss [anchors].
template <class A>
void contrast_cpu(const ContrastBlock<A>& block, A* loss);
// The same, and replaces the cosines by the gradient of the mean loss in them.
template <class A>
void contrast_gradient_cpu(const ContrastBlock<A>& block, A* loss);

template <class T>
const char* launch_unit_rows(const UnitRows<T>& pass, Stream stream);
template <class T>
const char* launch_unit_rows_backward(const UnitRowsBackward<T>& pass, Stream stream);
template <class A>
const char* launch_contrast(const ContrastBlock<A>& block, A* loss, Stream stream);
template <class A>
const char* launch_contrast_gradient(const ContrastBlock<A>& block, A* loss, Stream stream);

}  // namespace placket
