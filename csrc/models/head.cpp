#include "models/head.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <string_view>

#include "models/head_model.h"
#include "ops/attention_pool.h"

namespace placket {

using at::Tensor;

namespace {

struct HeadKind {
  const char* name;
  std::unique_ptr<HeadModel> (*make)(Description&);
};

constexpr HeadKind kHeads[] = {
    {"asen", make_asen},
    {"asen_v2", make_asen_v2},
    {"asen_plus_plus", make_asen_plus_plus},
    {"csn", make_csn},
    {"triplet", make_triplet},
    {"rpf_region", make_rpf_region},
    {"rpf_patch", make_rpf_patch},
    {"m3net", make_m3net},
};

struct Head {
  std::unique_ptr<const HeadModel> model;
  int64_t adapters_from, adapter_rank;

  size_t tensors() const { return model->tensors() + (adapters_from > 0 ? 3 : 0); }
};

Head make_head(const std::string& description) {
  Description settings("head", description);
  std::vector<std::string> names;
  for (const HeadKind& kind : kHeads) {
    if (settings.name() == kind.name) {
      Head head = {kind.make(settings), settings.integer("adapters_from", 0, 0),
                   settings.integer("adapter_rank", 64, 1)};
      settings.refuse_unknown_keys();
      return head;
    }
    names.emplace_back(kind.name);
  }
  settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
}

const Head& find_head(const std::string& description) { return read_once(description, make_head); }

// Rows [B, n, ...] of n adapters for attributes [K] or [B, K], counted from the first adapter's.
Tensor rows_of(const Tensor& rows, const Tensor& adapters) {
  if (adapters.dim() == 1) return rows.index_select(1, adapters);
  return rows.gather(1, adapters.unsqueeze(2).expand_symint({-1, -1, rows.sym_size(2)}));
}

// Gives attributes from `first` on their adapters' part.
void adapt(HeadOutput& out, const HeadInput& input, int64_t first, Weights& weights) {
  const Tensor& query = weights.next();  // [n, C]
  const Tensor& down = weights.next();   // [n, rank, C]
  const Tensor& up = weights.next();     // [n, E, rank]
  const int64_t channels = query.size(1);
  const Tensor tokens = at::layer_norm(map_to_tokens(input.features), {channels});  // [B, P, C]
  // One by one: a product with the rows of several might round otherwise than with those of fewer,
  // and an adapter's part must not depend on how many there are.
  std::vector<Tensor> parts, attentions;
  for (int64_t i = 0; i < query.size(0); ++i) {
    const Tensor logits = tokens.matmul(query[i]) / std::sqrt(double(channels));  // [B, P]
    const auto [pooled, rest, attention] =
        attention_pool(logits.unsqueeze(1), tokens.transpose(1, 2), /*background=*/false);
    parts.push_back(at::linear(at::linear(pooled, down[i]).relu(), up[i]));  // [B, 1, E]
    attentions.push_back(attention);                                         // [B, 1, P]
  }

  const Tensor adapters = (input.attributes - first).clamp_min(0);
  const Tensor chosen = input.attributes.ge(first).unsqueeze(-1);  // [(B,) K, 1]
  // Not a sum everywhere: -0 + 0 is another zero.
  out.embedding =
      (out.embedding + rows_of(at::cat(parts, 1), adapters)).where(chosen, out.embedding);
  if (!out.attention.defined()) return;
  const Tensor maps =
      rows_of(at::cat(attentions, 1), adapters)
          .unflatten_symint(2, {input.features.sym_size(2), input.features.sym_size(3)});
  out.attention = maps.where(chosen.unsqueeze(-1), out.attention);
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

std::tuple<Tensor, Tensor, Tensor, Tensor> class_head_op(const Tensor& features,
                                                         const std::optional<Tensor>& table,
                                                         const Tensor& attributes,
                                                         at::TensorList weights,
                                                         std::string_view head, bool training,
                                                         bool batch_statistics, int64_t groups) {
  const HeadOutput out =
      attribute_head(features, table.value_or(Tensor()), attributes, weights, std::string(head),
                     /*background=*/false, {training, batch_statistics, groups});
  TORCH_CHECK_VALUE(out.class_embedding.defined(),
                    "class_head: head must have a class sub-network, got '", head, "'");
  return {out.embedding, out.attention, out.class_embedding, out.class_logits};
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
    const int64_t channels = sizes.channels;
    specs.push_back({"adapter.query", {adapters, channels}, Initializer::kZeros});
    specs.push_back(
        {"adapter.down", {adapters, rank, channels}, Initializer::kLinear, double(channels)});
    specs.push_back({"adapter.up", {adapters, width, rank}, Initializer::kLinear, double(rank)});
    for (size_t i = specs.size() - 3; i < specs.size(); ++i) specs[i].attribute_axis = 0;
  }
  return specs;
}

int64_t head_embedding_dim(const std::string& head) {
  return find_head(head).model->embedding_dim();
}

int64_t head_table_dim(const std::string& head) { return find_head(head).model->table_dim(); }

bool head_attends(const std::string& head) { return find_head(head).model->attends(); }

bool head_has_background(const std::string& head) {
  return find_head(head).model->has_background();
}

std::vector<int64_t> head_classes(const std::string& head) {
  return find_head(head).model->classes();
}

int64_t head_centre_dim(const std::string& head) { return find_head(head).model->centre_dim(); }

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
  const HeadInput input{features, table, attributes, background};
  HeadOutput out = model.embed(input, cursor, mode);
  if (found.adapters_from > 0) adapt(out, input, found.adapters_from, cursor);
  return out;
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "attribute_head(Tensor features, Tensor? table, Tensor attributes, Tensor(a!)[] weights, "
      "str head, bool background=False, bool training=False, bool batch_statistics=False, "
      "int groups=1) -> (Tensor embedding, Tensor attention, Tensor background)",
      attribute_head_op, {at::Tag::pt2_compliant_tag});
  m.def(
      "class_head(Tensor features, Tensor? table, Tensor attributes, Tensor(a!)[] weights, str "
      "head, bool training=False, bool batch_statistics=False, int groups=1) -> (Tensor embedding, "
      "Tensor attention, Tensor class_embedding, Tensor class_logits)",
      class_head_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
