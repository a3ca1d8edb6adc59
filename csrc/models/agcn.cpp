#include <ATen/ATen.h>

#include "models/composition_model.h"
#include "ops/gated_fusion.h"

// AGCN, the add-on for composed retrieval of RaF-CLIP (Journal of Donghua University (English
// Edition) 2024, 41(4), pp. 405-415). Of it is published that a transformer with bidirectional
// attention and gates fuses and selects the features of image and text. All else is a
// reconstruction (systems.md 7.4). With V = [image; image_tokens] and T = [text; text_tokens], in
// each layer, all attention over several heads, x~ = LayerNorm(x) and drop on every residual,
//
//   V' = V + CA(V~ <- T~),   T' = T + CA(T~ <- V~)      from the same V and T
//   on each side:   x = x + SA(x~),   x = x + W2 gelu(W1 x~)
//
// Then v and t are the first tokens of both sides, and
//
//   g = sigmoid( W [v; t; v * t] ),   l = sigmoid( w [v; t] ),
//   query ~ g v + (1 - g) t + l text + (1 - l) image      (ops/gated_fusion.h, with its parts)
//
// Last layers of all residuals and both gates start at zero, so that training starts from the sum
// of image and text. Without tokens a side is its one row, and attention to it passes it on.
namespace placket {

using at::Tensor;

namespace {

void add_zero_linear(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in) {
  specs.push_back({name + ".weight", {out, in}, Initializer::kZeros});
  specs.push_back({name + ".bias", {out}, Initializer::kZeros});
}

struct AttentionWeights {
  Affine query, key_value, proj;
};

// One side of a layer.
struct SideWeights {
  Affine norm1;
  AttentionWeights cross;
  Affine norm2;
  AttentionWeights attn;
  Affine norm3, fc1, fc2;

  static constexpr size_t kTensors = 22;
};

AttentionWeights next_attention(Weights& weights) {
  const Affine query = weights.next_affine();
  const Affine key_value = weights.next_affine();
  return {query, key_value, weights.next_affine()};
}

SideWeights next_side(Weights& weights) {
  SideWeights side;
  side.norm1 = weights.next_affine();
  side.cross = next_attention(weights);
  side.norm2 = weights.next_affine();
  side.attn = next_attention(weights);
  side.norm3 = weights.next_affine();
  side.fc1 = weights.next_affine();
  side.fc2 = weights.next_affine();
  return side;
}

// `first` before the tokens, where there are any: [N, 1 + tokens, D].
Tensor with_tokens(const Tensor& first, const Tensor& tokens) {
  const Tensor row = first.unsqueeze(1);
  return tokens.defined() ? at::cat({row, tokens}, 1) : row;
}

// [N, 1, 1, 1 + L], true where a token of the text is; none where all are.
std::optional<Tensor> mask_of(const CompositionInput& input) {
  if (!input.text_mask.defined()) return std::nullopt;
  const Tensor first = at::ones_symint({input.text_mask.sym_size(0), 1}, input.text_mask.options());
  return at::cat({first, input.text_mask}, 1).unsqueeze(1).unsqueeze(1);
}

class Agcn : public CompositionModel {
 public:
  explicit Agcn(Description& settings)
      : layers_(settings.integer("layers", 2, 1)),
        heads_(settings.integer("heads", 8, 1)),
        hidden_(settings.integer("hidden", 2048, 1)),
        dropout_(settings.number("dropout", 0.1, 0, 1)) {}

  TensorSpecs spec(int64_t dims) const override {
    TORCH_CHECK_VALUE(dims % heads_ == 0, "agcn: heads must divide the ", dims,
                      " dimensions of the features, got ", heads_);
    TensorSpecs specs;
    for (int64_t layer = 0; layer < layers_; ++layer) {
      for (const char* side : {".image", ".text"}) {
        const std::string name = "layers." + std::to_string(layer) + side;
        add_layer_norm(specs, name + ".norm1", dims);
        add_attention(specs, name + ".cross", dims);
        add_layer_norm(specs, name + ".norm2", dims);
        add_attention(specs, name + ".attn", dims);
        add_layer_norm(specs, name + ".norm3", dims);
        add_linear(specs, name + ".mlp.fc1", hidden_, dims);
        add_zero_linear(specs, name + ".mlp.fc2", dims, hidden_);
      }
    }
    add_zero_linear(specs, "gate", dims, 3 * dims);
    add_zero_linear(specs, "selection", 1, 2 * dims);
    return specs;
  }
  size_t tensors() const override { return size_t(layers_) * 2 * SideWeights::kTensors + 4; }

  CompositionOutput compose(const CompositionInput& input, Weights& weights,
                            bool training) const override {
    Tensor image = with_tokens(input.image, input.image_tokens);
    Tensor text = with_tokens(input.text, input.text_tokens);
    const std::optional<Tensor> mask = mask_of(input);
    for (int64_t layer = 0; layer < layers_; ++layer) {
      const SideWeights of_image = next_side(weights);
      const SideWeights of_text = next_side(weights);
      const Tensor from_image = layer_norm(image, of_image.norm1);
      const Tensor from_text = layer_norm(text, of_text.norm1);
      image = image + drop(attend(from_image, from_text, mask, of_image.cross), training);
      text = text + drop(attend(from_text, from_image, std::nullopt, of_text.cross), training);
      const bool last = layer + 1 == layers_;
      image = refine(image, std::nullopt, of_image, last, training);
      text = refine(text, mask, of_text, last, training);
    }
    const Tensor v = image.squeeze(1), t = text.squeeze(1);
    const Tensor gate = linear(at::cat({v, t, v * t}, 1), weights.next_affine());
    const Tensor selection = linear(at::cat({v, t}, 1), weights.next_affine()).squeeze(1);
    const auto [query, image_share] = gated_fusion(gate, selection, v, t, input.image, input.text);
    return {query, image_share};
  }

 private:
  static void add_attention(TensorSpecs& specs, const std::string& name, int64_t dims) {
    add_linear(specs, name + ".q", dims, dims);
    add_linear(specs, name + ".kv", 2 * dims, dims);
    add_zero_linear(specs, name + ".proj", dims, dims);
  }

  Tensor drop(const Tensor& x, bool training) const { return at::dropout(x, dropout_, training); }

  Tensor attend(const Tensor& x, const Tensor& context, const std::optional<Tensor>& mask,
                const AttentionWeights& weights) const {
    const Tensor query = linear(x, weights.query);
    const std::vector<Tensor> key_value = linear(context, weights.key_value).chunk(2, 2);
    const Tensor mixed = at::scaled_dot_product_attention(split_heads(query, heads_),
                                                          split_heads(key_value[0], heads_),
                                                          split_heads(key_value[1], heads_), mask);
    return linear(join_heads(mixed), weights.proj);
  }

  // Self-attention and MLP of one side; of the last layer only the first token is read.
  Tensor refine(const Tensor& tokens, const std::optional<Tensor>& mask, const SideWeights& weights,
                bool last, bool training) const {
    const Tensor context = layer_norm(tokens, weights.norm2);
    const auto read = [&](const Tensor& x) { return last ? x.slice(1, 0, 1) : x; };
    const Tensor x =
        read(tokens) + drop(attend(read(context), context, mask, weights.attn), training);
    const Tensor y = linear(layer_norm(x, weights.norm3), weights.fc1);
    return x + drop(linear(drop(at::gelu(y), training), weights.fc2), training);
  }

  int64_t layers_, heads_, hidden_;
  double dropout_;
};

}  // namespace

std::unique_ptr<CompositionModel> make_agcn(Description& settings) {
  return std::make_unique<Agcn>(settings);
}

}  // namespace placket
