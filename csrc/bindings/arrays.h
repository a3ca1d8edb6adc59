#pragma once

#include <c10/util/Exception.h>
#include <pybind11/numpy.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <vector>

#include "data/decode.h"

namespace placket {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style | pybind11::array::forcecast>;

template <class T>
std::vector<T> to_vector(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

template <class T>
pybind11::array_t<T> to_array(const std::vector<T>& values) {
  return pybind11::array_t<T>(pybind11::ssize_t(values.size()), values.data());
}

inline pybind11::array_t<uint8_t> pixels_of(const ImageView& image) {
  using Size = pybind11::ssize_t;
  return pybind11::array_t<uint8_t>({Size(image.height), Size(image.width), Size(3)}, image.pixels);
}

inline Image image_of(const Array<uint8_t>& pixels) {
  TORCH_CHECK_VALUE(pixels.ndim() == 3 && pixels.shape(2) == 3 && pixels.size() > 0,
                    "image must have shape [height, width, 3], got ", pixels.ndim(),
                    " dimensions and ", pixels.size(), " elements");
  return {pixels.shape(0), pixels.shape(1), {pixels.data(), pixels.data() + pixels.size()}};
}

}  // namespace placket
