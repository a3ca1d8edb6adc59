#include <ATen/ATen.h>

#include "models/composition_model.h"

// Compositions without weights, which show what the features do by themselves: a method has to beat
// their sum, and each of them alone.
namespace placket {

using at::Tensor;

namespace {

class PlainComposition : public CompositionModel {
 public:
  PlainComposition(bool image, bool text) : image_(image), text_(text) {}

  TensorSpecs spec(int64_t /*dims*/) const override { return {}; }
  size_t tensors() const override { return 0; }

  // image part: the image's row, or zeros; text part: the text's row, or zeros.
  CompositionOutput compose(const CompositionInput& input, Weights& /*weights*/,
                            bool /*training*/) const override {
    if (image_ && text_) return query_of(input.image, input.text);
    const Tensor& row = image_ ? input.image : input.text;
    const Tensor share = at::full_symint({row.sym_size(0)}, image_ ? 1.0 : 0.0, row.options());
    return {unit_length(row), share};
  }

 private:
  bool image_, text_;
};

}  // namespace

std::unique_ptr<CompositionModel> make_sum(Description& /*settings*/) {
  return std::make_unique<PlainComposition>(true, true);
}

std::unique_ptr<CompositionModel> make_image_only(Description& /*settings*/) {
  return std::make_unique<PlainComposition>(true, false);
}

std::unique_ptr<CompositionModel> make_text_only(Description& /*settings*/) {
  return std::make_unique<PlainComposition>(false, true);
}

}  // namespace placket
