#pragma once

#include <cstdint>

#include "base/bfloat16.h"
#include "base/host_device.h"

namespace placket {

// Below this a row has no direction; it is the eps of torch.nn.functional.normalize.
constexpr double kCentreFloor = 1e-12;

// Rows under their classes; see ops/class_centres.h. Everything is contiguous.
template <class T>
struct ClassRows {
  const T* embeddings;     // [rows, dims]
  const int64_t* classes;  // [rows]; outside of [0, count) a row takes no part
  int64_t rows;
  int64_t dims;
  int64_t count;
};

// Centres [count, dims] that move towards the means of their classes.
template <class A>
struct Centres {
  const A* centres;
  int64_t count;
  int64_t dims;
  double momentum;
};

// sums [count, dims], counts [count]
template <class T>
void class_sums_cpu(const ClassRows<T>& rows, accumulate_t<T>* sums, accumulate_t<T>* counts);
template <class A>
void class_centres_of_sums_cpu(const Centres<A>& centres, const A* sums, const A* counts, A* moved);
template <class T>
void class_centres_cpu(const ClassRows<T>& rows, const Centres<accumulate_t<T>>& centres,
                       accumulate_t<T>* moved);

// `inverse`: [rows], filled with what the rows are multiplied by.
template <class T>
const char* launch_class_sums(const ClassRows<T>& rows, accumulate_t<T>* inverse,
                              accumulate_t<T>* sums, accumulate_t<T>* counts, Stream stream);
template <class A>
const char* launch_class_centres_of_sums(const Centres<A>& centres, const A* sums, const A* counts,
                                         A* moved, Stream stream);
template <class T>
const char* launch_class_centres(const ClassRows<T>& rows, const Centres<accumulate_t<T>>& centres,
                                 accumulate_t<T>* inverse, accumulate_t<T>* moved, Stream stream);

}  // namespace placket
