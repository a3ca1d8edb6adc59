#include "data/label_table.h"

#include <c10/util/Exception.h>

namespace placket {

bool LabelTable::carries(int64_t image, int64_t attribute, int64_t value) const {
  for (int64_t i = begin[image]; i < begin[image + 1]; ++i) {
    if (this->attribute[i] == attribute && this->value[i] == value) return true;
  }
  return false;
}

void check_labels(const char* user, const LabelTable& labels) {
  const int64_t count = int64_t(labels.attribute.size());
  TORCH_CHECK_VALUE(labels.value.size() == labels.attribute.size(), user,
                    ": labels must have as many values as attributes, got ", labels.value.size(),
                    " and ", count);
  TORCH_CHECK_VALUE(
      !labels.begin.empty() && labels.begin.front() == 0 && labels.begin.back() == count, user,
      ": labels.begin must go from 0 to the number of labels ", count, ", got ",
      labels.begin.size(), " entries", labels.begin.empty() ? "" : " that end elsewhere");
  for (int64_t image = 0; image < labels.images(); ++image) {
    TORCH_CHECK_VALUE(labels.begin[image] <= labels.begin[image + 1], user,
                      ": labels.begin must not fall, got ", labels.begin[image], " before ",
                      labels.begin[image + 1], " at image ", image);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t attribute = labels.attribute[i];
    TORCH_CHECK_VALUE(attribute >= 0 && attribute < int64_t(labels.values.size()), user,
                      ": attribute of label ", i, " must be in [0, ", labels.values.size(),
                      "), got ", attribute);
    TORCH_CHECK_VALUE(labels.value[i] >= 0 && labels.value[i] < labels.values[attribute], user,
                      ": value of label ", i, " (attribute ", attribute, ") must be in [0, ",
                      labels.values[attribute], "), got ", labels.value[i]);
  }
}

}  // namespace placket
