#include "data/unicode_classes.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "data/unicode_table.h"

namespace placket {
namespace {

CharClass find_class(char32_t point) {
  const auto* range =
      std::lower_bound(std::begin(kCharRanges), std::end(kCharRanges), point,
                       [](const CharRange& r, char32_t value) { return r.last < value; });
  if (range == std::end(kCharRanges) || point < range->first) return CharClass::kOther;
  return range->char_class;
}

// Most text is ASCII.
using AsciiClasses = std::array<CharClass, 128>;

AsciiClasses ascii_classes() {
  AsciiClasses classes;
  for (size_t i = 0; i < classes.size(); ++i) classes[i] = find_class(char32_t(i));
  return classes;
}

}  // namespace

CharClass char_class(char32_t point) {
  static const AsciiClasses kAscii = ascii_classes();
  return point < kAscii.size() ? kAscii[point] : find_class(point);
}

}  // namespace placket
