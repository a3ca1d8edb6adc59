#pragma once

#include <cstdint>

namespace placket {

// What the general category of a character makes it for the splitting of text into words.
enum class CharClass : uint8_t {
  kOther,
  kLetter,  // L*: Lu, Ll, Lt, Lm, Lo
  kNumber,  // N*: Nd, Nl, No
  kSpace,   // the property White_Space
};

// Of any number; those that are no character are kOther.
CharClass char_class(char32_t point);

}  // namespace placket
