#include "models/composition.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <map>
#include <mutex>
#include <string_view>

#include "base/checks.h"
#include "models/composition_model.h"

namespace placket {

using at::Tensor;
using std::optional;

namespace {

struct CompositionKind {
  const char* name;
  std::unique_ptr<CompositionModel> (*make)(Description&);
};

constexpr CompositionKind kCompositions[] = {
    {"agcn", make_agcn}, {"tirg", make_tirg},        {"combiner", make_combiner},
    {"sum", make_sum},   {"image", make_image_only}, {"text", make_text_only},
};

std::unique_ptr<const CompositionModel> make_composition(const std::string& description) {
  Description settings("composition", description);
  std::vector<std::string> names;
  for (const CompositionKind& kind : kCompositions) {
    if (settings.name() == kind.name) {
      std::unique_ptr<const CompositionModel> model = kind.make(settings);
      settings.refuse_unknown_keys();
      return model;
    }
    names.emplace_back(kind.name);
  }
  settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
}

// Descriptions are read once: every forward pass asks for its composition by name.
const CompositionModel& find_composition(const std::string& description) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<const CompositionModel>> compositions;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = compositions.find(description);
  if (found != compositions.end()) return *found->second;
  return *compositions.emplace(description, make_composition(description)).first->second;
}

constexpr const char* kName = "compose";

// [N, anything, D], as `pattern` writes it.
void check_tokens(const char* name, const Tensor& tokens, const Tensor& image,
                  const char* pattern) {
  TORCH_CHECK_VALUE(tokens.dim() == 3 && tokens.sym_size(0) == image.sym_size(0) &&
                        tokens.sym_size(2) == image.sym_size(1),
                    kName, ": ", name, " must have shape ", pattern, " with the N and D of image, ",
                    image.sym_sizes(), ", got ", tokens.sym_sizes());
  check_same_device(kName, name, tokens, "image", image);
}

void check_input(const CompositionInput& input) {
  const Tensor& image = input.image;
  TORCH_CHECK_VALUE(image.dim() == 2, kName, ": image must have shape [N, D], got ",
                    image.sym_sizes());
  TORCH_CHECK_VALUE(input.text.sym_sizes() == image.sym_sizes(), kName,
                    ": text must have shape [N, D] like image, ", image.sym_sizes(), ", got ",
                    input.text.sym_sizes());
  check_same_device(kName, "text", input.text, "image", image);
  if (input.image_tokens.defined()) {
    check_tokens("image_tokens", input.image_tokens, image, "[N, P, D]");
  }
  if (input.text_tokens.defined()) {
    check_tokens("text_tokens", input.text_tokens, image, "[N, L, D]");
  }
  const Tensor& mask = input.text_mask;
  if (!mask.defined()) return;
  TORCH_CHECK_VALUE(input.text_tokens.defined(), kName,
                    ": text_mask must be left out without text_tokens, got ", mask.sym_sizes());
  TORCH_CHECK_VALUE(mask.dim() == 2 && mask.sym_size(0) == input.text_tokens.sym_size(0) &&
                        mask.sym_size(1) == input.text_tokens.sym_size(1),
                    kName, ": text_mask must have shape [N, L] like text_tokens, ",
                    input.text_tokens.sym_sizes(), ", got ", mask.sym_sizes());
  check_dtype(kName, "text_mask", mask, at::kBool);
  check_same_device(kName, "text_mask", mask, "image", image);
}

// Rows [..., D] with a root mean square of 1.
Tensor scaled(const Tensor& rows) {
  if (!rows.defined()) return rows;
  // Asked for alone: size() would fix every dimension in a trace.
  const int64_t dims = rows.sym_size(-1).guard_int(__FILE__, __LINE__);
  return unit_length(rows) * std::sqrt(double(dims));
}

std::tuple<Tensor, Tensor> compose_op(const Tensor& image, const Tensor& text,
                                      const optional<Tensor>& image_tokens,
                                      const optional<Tensor>& text_tokens,
                                      const optional<Tensor>& text_mask, at::TensorList weights,
                                      std::string_view composition, bool training) {
  const CompositionOutput out =
      compose({image, text, image_tokens.value_or(Tensor()), text_tokens.value_or(Tensor()),
               text_mask.value_or(Tensor())},
              weights, std::string(composition), training);
  return {out.query, out.image_share};
}

}  // namespace

Tensor unit_length(const Tensor& rows) {
  return rows / at::linalg_vector_norm(rows, 2, {-1}, /*keepdim=*/true).clamp_min(1e-12);
}

CompositionOutput query_of(const Tensor& image_part, const Tensor& text_part,
                           const Tensor& joint_part) {
  const Tensor parts = image_part + text_part;
  const Tensor sum = joint_part.defined() ? parts + joint_part : parts;
  const auto length = [](const Tensor& part) {
    return at::linalg_vector_norm(part.detach(), 2, {1});
  };
  const Tensor image = length(image_part);
  const Tensor both = image + length(text_part);
  return {unit_length(sum), (image / both).masked_fill(both.eq(0), 0.5)};
}

TensorSpecs composition_spec(const std::string& composition, int64_t dims) {
  TORCH_CHECK_VALUE(dims > 0, "composition: dims must be at least 1, got ", dims);
  const CompositionModel& model = find_composition(composition);
  TensorSpecs specs = model.spec(dims);
  TORCH_INTERNAL_ASSERT(specs.size() == model.tensors());
  return specs;
}

CompositionOutput compose(const CompositionInput& input, at::TensorList weights,
                          const std::string& composition, bool training) {
  const CompositionModel& model = find_composition(composition);
  check_input(input);
  Weights cursor(kName, weights, model.tensors());
  return model.compose({scaled(input.image), scaled(input.text), scaled(input.image_tokens),
                        scaled(input.text_tokens), input.text_mask},
                       cursor, training);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "compose(Tensor image, Tensor text, Tensor? image_tokens, Tensor? text_tokens, Tensor? "
      "text_mask, Tensor(a!)[] weights, str composition, bool training=False) -> (Tensor query, "
      "Tensor image_share)",
      compose_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
