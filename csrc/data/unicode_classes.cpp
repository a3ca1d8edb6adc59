#include "data/unicode_classes.h"

#include <algorithm>
#include <iterator>

#include "data/unicode_table.h"

namespace placket {

CharClass char_class(char32_t point) {
  const auto* range =
      std::lower_bound(std::begin(kCharRanges), std::end(kCharRanges), point,
                       [](const CharRange& r, char32_t value) { return r.last < value; });
  if (range == std::end(kCharRanges) || point < range->first) return CharClass::kOther;
  return range->char_class;
}

}  // namespace placket
