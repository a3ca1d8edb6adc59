#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "models/tensor_spec.h"

namespace placket {

// CLIP's text tower (Radford et al., ICML 2021) turns token ids [B, L] into an embedding of each
// text, [B, D], the projected token at the text's end. It is described by one string,
// "clip_text[,key=value...]": width=512, depth=12, heads (width / 64), mlp (4 width), context=77:
// the most tokens a text may have, vocabulary=49408, embedding_dim=512, activation=quick_gelu |
// gelu, and where the end is:
//
//   pool=argmax            at the largest id, the first of several, as OpenAI and open_clip have it
//   pool=eos,eos_id=49407  at the first such id, as Hugging Face has it; at the first token where
//                          there is none
//
// What comes after the end changes nothing: a token sees only those before it. So texts padded to a
// shorter length than the context's have the same embedding at less cost. An unknown name or key is
// an error that lists the known ones.
TensorSpecs text_tower_spec(const std::string& tower);

// D.
int64_t text_tower_embedding_dim(const std::string& tower);

int64_t text_tower_context(const std::string& tower);
int64_t text_tower_vocabulary(const std::string& tower);

struct TextTowerOutput {
  at::Tensor embedding;  // [B, D], not normalised
  at::Tensor tokens;     // [B, L, D]; undefined unless asked for. Those behind the end mean nothing
  at::Tensor end;        // [B] int64, position of the end: tokens[b, end[b]] is embedding[b]
};

// Registered as placket::text_tower(Tensor ids, Tensor[] weights, str tower, bool tokens) ->
// (Tensor embedding, Tensor tokens, Tensor end), a composite operator: it decomposes when traced.
// There what is undefined is an empty tensor.
TextTowerOutput text_tower(
    const at::Tensor& ids,   // [B, L] int64 or int32, 1 <= L <= context, ids of the vocabulary
    at::TensorList weights,  // in the order of text_tower_spec
    const std::string& tower, bool tokens);

}  // namespace placket
