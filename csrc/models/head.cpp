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
    {"m3net", make_m3net},
};

std::unique_ptr<const HeadModel> make_head(const std::string& description) {
  Description settings("head", description);
  std::vector<std::string> names;
  for (const HeadKind& kind : kHeads) {
    if (settings.name() == kind.name) {
      std::unique_ptr<HeadModel> model = kind.make(settings);
      settings.refuse_unknown_keys();
      return model;
    }
    names.emplace_back(kind.name);
  }
  settings.fail("name", "be one of " + join(names), "'" + settings.name() + "'");
}

// Descriptions are read once: every forward pass asks for its head by name.
const HeadModel& find_head(const std::string& description) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<const HeadModel>> heads;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = heads.find(description);
  if (found != heads.end()) return *found->second;
  return *heads.emplace(description, make_head(description)).first->second;
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
  const HeadModel& model = find_head(head);
  TensorSpecs specs = model.spec(sizes);
  TORCH_INTERNAL_ASSERT(specs.size() == model.tensors());
  return specs;
}

int64_t head_embedding_dim(const std::string& head) { return find_head(head).embedding_dim(); }

int64_t head_table_dim(const std::string& head) { return find_head(head).table_dim(); }

bool head_attends(const std::string& head) { return find_head(head).attends(); }

std::vector<int64_t> head_classes(const std::string& head) { return find_head(head).classes(); }

int64_t head_centre_dim(const std::string& head) { return find_head(head).centre_dim(); }

HeadOutput attribute_head(const Tensor& features, const Tensor& table, const Tensor& attributes,
                          at::TensorList weights, const std::string& head, bool background,
                          const Mode& mode) {
  constexpr const char* kName = "attribute_head";
  const HeadModel& model = find_head(head);
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
  Weights cursor(kName, weights, model.tensors());
  return model.embed({features, table, attributes, background}, cursor, mode);
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
