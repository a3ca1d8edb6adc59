#pragma once

#include "models/description.h"
#include "models/layers.h"

// The pre-norm transformer of CLIP's towers, "Learning Transferable Visual Models From Natural
// Language Supervision" (Radford et al., ICML 2021). Names and initial values are those of OpenAI's
// text transformer; there are none published for the image's.
namespace placket {

struct TransformerConfig {
  int64_t width = 512;
  int64_t depth = 12;
  int64_t heads = 8;
  int64_t mlp = 2048;      // hidden width
  bool quick_gelu = true;  // x sigmoid(1.702 x), OpenAI's; otherwise x Phi(x)
  bool causal = false;     // a token sees itself and those before it
  double norm_eps = 1e-5;
};

// Reads width, depth, heads, mlp and activation, where they are given; heads = 0 and mlp = 0 of
// `published` stand for width / 64 and 4 width.
TransformerConfig read_transformer(Description& settings, const TransformerConfig& published);

void add_transformer(TensorSpecs& specs, const std::string& name, const TransformerConfig& config);

// Tokens [B, N, C] to tokens [B, N, C] or, where `only` [B] says which one of each row is wanted,
// to those alone, [B, 1, C]: the last block then computes no other.
at::Tensor transformer(at::Tensor tokens, Weights& weights, const TransformerConfig& config,
                       const at::Tensor& only = {});

// Tokens [B, N, C] to one of each row, [B, 1, C], by its position [B].
at::Tensor pick_tokens(const at::Tensor& tokens, const at::Tensor& positions);

}  // namespace placket
