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

  int64_t images() const { return int64_t(begin.size()) - 1; }
  // Whether an image has this value of an attribute, perhaps among others.
  bool carries(int64_t image, int64_t attribute, int64_t value) const;
};

// Throws ValueError where the rows do not fit together or a label is out of range; `user` begins
// the sentence.
void check_labels(const char* user, const LabelTable& labels);

}  // namespace placket
