#pragma once

#include <cstddef>
#include <cstdint>

#include "data/decode.h"

namespace placket {

// How a camera was held, 1 (upright) to 8, by the tag of that name in the EXIF block of a JPEG
// file's APP1 segment, "Exif\0\0" first. 1 where there is none or the block does not parse, as
// browsers show such a file.
int exif_orientation(const uint8_t* segment, size_t size);

// The image upright, as Pillow's ImageOps.exif_transpose leaves it; sides are swapped from 5 on.
Image upright(Image image, int orientation);

}  // namespace placket
