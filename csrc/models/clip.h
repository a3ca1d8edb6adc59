#pragma once

#include <string>

#include "models/tensor_spec.h"

namespace placket {

// CLIP: an image tower (image_tower.h) and a text tower (text_tower.h) of the same embedding_dim.
// Names: visual.* of the image tower, those of the text tower as they are, and logit_scale, a
// scalar: the logarithm of what cosines are multiplied by, ln(1 / 0.07) at first. Towers that do
// not fit each other are a ValueError.
TensorSpecs clip_spec(const std::string& image, const std::string& text);

}  // namespace placket
