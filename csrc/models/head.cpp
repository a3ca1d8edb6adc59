#include "models/head.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <string_view>

#include "models/head_model.h"

namespace placket {

using at::Tensor;

namespace {

struct HeadKind {
  const char* name;
  std::unique_ptr<HeadModel> (*make)(Description&);
};

constexpr HeadKind kHeads[] = {
    {"rpf_region", make_rpf_region},
    {"rpf_patch", make_rpf_patch},
};

struct Head {
  std::unique_ptr<const HeadModel> model;
  int64_t adapters_from, adapter_rank;

  size_t tensors() const { return model->tensors() + (adapters_from > 0 ? 2 : 0); }
};

Head make_head(const std::string& description) {
  Description settings("head", description);
  std::vector<std::string> names;
  for (const HeadKind& kind : kHeads) {
    if (settings.name() == kind.name) {
      Head head = {kind.make(settings), settings.integer("adapters_from", 0, 0),
                   settings.integer("adapter_rank", 16, 1)};
      settings.refuse_unknown_keys();
      return head;
    }
    names.emplace_back(kind.name);
  }
  settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
}

// Descriptions are read once: every forward pass asks for its head by name.
const Head& find_head(const std::string& description) {
  static std::mutex mutex;
  static std::map<std::string, Head> heads;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = heads.find(description);
  if (found != heads.end()) return found->second;
  return heads.emplace(description, make_head(description)).first->second;
}

// Adds the adapters' part to embeddings [B, K, E] of attributes from `first` on.
Tensor adapt(const Tensor& embedding, const Tensor& attributes, int64_t first, const Tensor& down,
             const Tensor& up) {
  const Tensor own = at::arange(first, first + down.size(0), attributes.options());
  const Tensor chosen = attributes.unsqueeze(-1).eq(own);  // [(B,) K, adapters]
  const Tensor hidden = at::linear(embedding, down.flatten(0, 1))
                            .relu()
                            .unflatten(2, {down.size(0), down.size(1)});  // [B, K, adapters, rank]
  const Tensor kept = hidden.where(chosen.unsqueeze(-1), 0).flatten(2);
  const Tensor part = kept.matmul(up.transpose(1, 2).flatten(0, 1));
  // Not a sum everywhere: -0 + 0 is another zero.
  return (embedding + part).where(chosen.any(-1, /*keepdim=*/true), embedding);
}

std::tuple<Tensor, Tensor, Tensor> attribute_head_op(const Tensor& features,
                                                     const std::optional<Tensor>& table,
                                                     const Tensor& attributes,
                                                     at::TensorList weights, std::string_view head,
                                                     bool background, bool training,
                                                     bool batch_statistics, int64_t groups) {
  const HeadOutput out =
      attribute_head(features, table.value_or(Tensor()), attributes, weights, std::string(head),
                     background, {training, batch_statistics, groups});
  const auto present = [&](const Tensor& tensor) {
    return tensor.defined() ? tensor : at::empty({0}, features.options());
  };
  return {out.embedding, present(out.attention), present(out.background)};
}

}  // namespace

TensorSpecs head_spec(const std::string& head, const HeadSizes& sizes) {
  const auto& [model, adapters_from, rank] = find_head(head);
  TensorSpecs specs = model->spec(sizes);
  TORCH_INTERNAL_ASSERT(specs.size() == model->tensors());
  if (adapters_from > 0) {
    const int64_t adapters = sizes.attributes - adapters_from;
    TORCH_CHECK_VALUE(adapters > 0, "head: adapters_from must be one of the ", sizes.attributes,
                      " attributes, got ", adapters_from);
    const int64_t width = model->embedding_dim();
    specs.push_back({"adapter.down", {adapters, rank, width}, Initializer::kLinear, double(width)});
    specs.push_back({"adapter.up", {adapters, width, rank}, Initializer::kZeros});
    for (size_t i = specs.size() - 2; i < specs.size(); ++i) specs[i].attribute_dim = 0;
  }
  return specs;
}

int64_t head_embedding_dim(const std::string& head) {
  return find_head(head).model->embedding_dim();
}

int64_t head_table_dim(const std::string& head) { return find_head(head).model->table_dim(); }

bool head_attends(const std::string& head) { return find_head(head).model->attends(); }

HeadOutput attribute_head(const Tensor& features, const Tensor& table, const Tensor& attributes,
                          at::TensorList weights, const std::string& head, bool background,
                          const Mode& mode) {
  constexpr const char* kName = "attribute_head";
  const Head& found = find_head(head);
  const HeadModel& model = *found.model;
  TORCH_CHECK_VALUE(features.dim() == 4, kName, ": features must have shape [B, C, h, w], got ",
                    features.sym_sizes());
  TORCH_CHECK_VALUE(attributes.dim() == 1 ||
                        (attributes.dim() == 2 && attributes.sym_size(0) == features.sym_size(0)),
                    kName, ": attributes must have shape [B, K] or [K], got ",
                    attributes.sym_sizes());
  const int64_t width = model.table_dim();
  if (width > 0) {
    TORCH_CHECK_VALUE(table.defined() && table.dim() == 2 && table.size(1) == width, kName,
                      ": table must have shape [A, ", width, "] for head '", head, "', got ",
                      table.defined() ? table.sym_sizes() : c10::SymIntArrayRef());
  }
  Weights cursor(kName, weights, found.tensors());
  HeadOutput out = model.embed({features, table, attributes, background}, cursor, mode);
  if (found.adapters_from > 0) {
    const Tensor& down = cursor.next();
    out.embedding = adapt(out.embedding, attributes, found.adapters_from, down, cursor.next());
  }
  return out;
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "attribute_head(Tensor features, Tensor? table, Tensor attributes, Tensor(a!)[] weights, "
      "str head, bool background=False, bool training=False, bool batch_statistics=False, "
      "int groups=1) -> (Tensor embedding, Tensor attention, Tensor background)",
      attribute_head_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
