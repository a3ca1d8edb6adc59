#include "models/clip.h"

#include <c10/util/Exception.h>

#include <cmath>

#include "models/image_tower.h"
#include "models/layers.h"
#include "models/text_tower.h"

namespace placket {

TensorSpecs clip_spec(const std::string& image, const std::string& text) {
  const int64_t of_image = image_tower_embedding_dim(image);
  const int64_t of_text = text_tower_embedding_dim(text);
  TORCH_CHECK_VALUE(of_image == of_text, "clip: both towers must have the same embedding_dim, got ",
                    of_image, " of image '", image, "' and ", of_text, " of text '", text, "'");
  TensorSpecs specs;
  add_specs(specs, "visual.", image_tower_spec(image));
  add_specs(specs, "", text_tower_spec(text));
  specs.push_back({"logit_scale",
                   {},
                   Initializer::kNormal,
                   /*scale=*/0.0,
                   /*buffer=*/false,
                   /*mean=*/std::log(1 / 0.07)});
  return specs;
}

}  // namespace placket
