#include "models/text_tower.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <string_view>

#include "models/clip_transformer.h"

namespace placket {

using at::Tensor;

namespace {

struct TextTower {
  TransformerConfig transformer;
  int64_t context, vocabulary, embedding_dim;
  int64_t eos_id;  // -1: the text ends at its largest id
  size_t tensors;  // in its spec

  TensorSpecs spec() const {
    const int64_t width = transformer.width;
    TensorSpecs specs;
    specs.push_back({"token_embedding.weight", {vocabulary, width}, Initializer::kNormal, 0.02});
    specs.push_back({"positional_embedding", {context, width}, Initializer::kNormal, 0.01});
    add_transformer(specs, "transformer", transformer);
    add_layer_norm(specs, "ln_final", width);
    specs.push_back({"text_projection",
                     {width, embedding_dim},
                     Initializer::kNormal,
                     1 / std::sqrt(double(width))});
    return specs;
  }

  Tensor end(const Tensor& ids) const {
    return (eos_id < 0 ? ids : ids.eq(eos_id).to(at::kInt)).argmax(1);
  }
};

TextTower make_text_tower(const std::string& description) {
  Description settings("text_tower", description);
  if (settings.name() != "clip_text") {
    settings.fail("name", "be clip_text", "'" + settings.name() + "'");
  }
  TextTower tower;
  tower.transformer =
      read_transformer(settings, {.width = 512, .heads = 0, .mlp = 0, .causal = true});
  tower.context = settings.integer("context", 77, 1);
  tower.vocabulary = settings.integer("vocabulary", 49408, 1);
  tower.embedding_dim = settings.integer("embedding_dim", 512, 1);
  tower.eos_id = -1;
  if (settings.choice("pool", "argmax", {"argmax", "eos"}) == "eos") {
    tower.eos_id = settings.integer("eos_id", tower.vocabulary - 1, 0);
    if (tower.eos_id >= tower.vocabulary) {
      settings.fail("eos_id", "be less than vocabulary, " + std::to_string(tower.vocabulary),
                    std::to_string(tower.eos_id));
    }
  }
  settings.refuse_unknown_keys();
  tower.tensors = tower.spec().size();
  return tower;
}

const TextTower& find_text_tower(const std::string& description) {
  return read_once(description, make_text_tower);
}

std::tuple<Tensor, Tensor, Tensor> text_tower_op(const Tensor& ids, at::TensorList weights,
                                                 std::string_view tower, bool tokens) {
  const TextTowerOutput out = text_tower(ids, weights, std::string(tower), tokens);
  return {out.embedding,
          out.tokens.defined() ? out.tokens : at::empty({0}, out.embedding.options()), out.end};
}

}  // namespace

TensorSpecs text_tower_spec(const std::string& tower) { return find_text_tower(tower).spec(); }

int64_t text_tower_embedding_dim(const std::string& tower) {
  return find_text_tower(tower).embedding_dim;
}

int64_t text_tower_context(const std::string& tower) { return find_text_tower(tower).context; }

int64_t text_tower_vocabulary(const std::string& tower) {
  return find_text_tower(tower).vocabulary;
}

TextTowerOutput text_tower(const Tensor& ids, at::TensorList weights, const std::string& tower,
                           bool tokens) {
  constexpr const char* kName = "text_tower";
  const TextTower& found = find_text_tower(tower);
  const TransformerConfig& settings = found.transformer;
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt, kName,
                   ": ids must be int64 or int32, got ", ids.scalar_type());
  TORCH_CHECK_VALUE(ids.dim() == 2 && ids.sym_size(1) >= 1 && ids.sym_size(1) <= found.context,
                    kName, ": ids must have shape [B, L] with L from 1 to ", found.context,
                    ", got ", ids.sym_sizes());
  Weights cursor(kName, weights, found.tensors);
  TextTowerOutput out;
  out.end = found.end(ids);
  Tensor x = at::embedding(cursor.next(), ids);
  x = x + cursor.next().slice_symint(0, 0, ids.sym_size(1));
  x = transformer(x, cursor, settings, tokens ? Tensor() : out.end);
  x = layer_norm(x, cursor.next_affine(), settings.norm_eps).matmul(cursor.next());
  out.embedding = (tokens ? pick_tokens(x, out.end) : x).squeeze(1);
  if (tokens) out.tokens = x;
  return out;
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "text_tower(Tensor ids, Tensor[] weights, str tower, bool tokens=False) -> (Tensor "
      "embedding, Tensor tokens, Tensor end)",
      text_tower_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
