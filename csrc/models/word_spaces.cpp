#include "models/word_spaces.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "ops/autocast.h"
#include "ops/unit_rows.h"

namespace placket {

using at::Tensor;

Tensor word_spaces(const Tensor& images, const Tensor& words, at::IntArrayRef values,
                   const Tensor& scale) {
  constexpr const char* kName = "word_spaces";
  TORCH_CHECK_VALUE(
      images.dim() == 2 && words.dim() == 2 && images.sym_size(1) == words.sym_size(1), kName,
      ": images and words must have shapes [N, D] and [M, D], got ", images.sym_sizes(), " and ",
      words.sym_sizes());
  const int64_t total = std::accumulate(values.begin(), values.end(), int64_t{0});
  TORCH_CHECK_VALUE(words.sym_size(0) == total, kName, ": words must have ", total,
                    " rows, one for each value, got ", words.sym_size(0));
  const int64_t width = words.size(1);
  for (const int64_t count : values) {
    TORCH_CHECK_VALUE(count >= 1 && count <= width, kName,
                      ": values must be from 1 to the width of the embeddings, ", width, ", got ",
                      count);
  }
  const BelowAutocast below;
  const Tensor x = at_least_float32(images);
  const Tensor logits = at::matmul(x, at_least_float32(words).t()) * scale;
  std::vector<Tensor> rows;
  int64_t first = 0;
  for (const int64_t count : values) {
    const Tensor own = logits.narrow(1, first, count).log_softmax(1);
    rows.push_back(at::constant_pad_nd((own * 0.5).exp(), {0, width - count}));
    first += count;
  }
  rows.push_back(unit_rows(x));
  return at::stack(rows, 1);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def("word_spaces(Tensor images, Tensor words, int[] values, Tensor scale) -> Tensor",
        word_spaces, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
