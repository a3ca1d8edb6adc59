#pragma once

#include <cstdint>
#include <vector>

namespace placket {

// Multi-label attribute values of a split's images in compressed rows: the labels of image i are
// entries [begin[i], begin[i + 1]) of attribute and value.
struct LabelTable {
  std::vector<int64_t> begin;      // [images + 1]
  std::vector<int32_t> attribute;  // [labels]
  std::vector<int32_t> value;      // [labels], within the attribute
  std::vector<int64_t> values;     // [A] number of values of each attribute
};

}  // namespace placket
