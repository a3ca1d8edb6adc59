#include "train/systems/region_text.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "base/random.h"
#include "models/clip.h"
#include "models/image_tower.h"
#include "models/text_tower.h"
#include "models/word_spaces.h"
#include "ops/pair_contrast.h"
#include "ops/unit_rows.h"
#include "train/model_system.h"
#include "train/recompute.h"

namespace placket {
namespace {

using at::Tensor;

const std::vector<std::string> kTowers = {"image", "text"};
const std::vector<std::string> kTextLosses = {"category_text", "attribute_text", "attribute_absent",
                                              "view_agreement"};
const std::string kScale = "logit_scale";
const std::string kBias = "absent_bias";
constexpr double kMostScale = 100.0;
constexpr int64_t kPromptsAtOnce = 256;  // encoded outside of training

// Prompts of a batch, and what each says of each region.
struct Prompts {
  std::vector<int64_t> ids;  // [U] rows of ValuePrompts::ids
  Tensor carried;            // [N, U] bool: it is true of the region
  Tensor known;              // [N, U] bool: it is labelled to be, or not to be
};

class RegionTextSystem : public ModelSystem {
 public:
  RegionTextSystem(const RegionTextConfig& config, const std::map<std::string, Tensor>& tensors,
                   const std::vector<int64_t>& values, const ValuePrompts& prompts)
      : ModelSystem("RegionTextSystem", clip_spec(config.image, config.text), tensors),
        config_(config),
        values_(values),
        prompts_(prompts) {
    TORCH_CHECK_VALUE(config.category >= -1 && config.category < int64_t(values.size()),
                      "RegionTextSystem: category must be one of the ", values.size(),
                      " attributes or -1, got ", config.category);
    for (size_t a = 0; a < values.size(); ++a) {
      owners_.insert(owners_.end(), size_t(values[a]), int64_t(a));
    }
    const int64_t categories = config.category < 0 ? 0 : values[size_t(config.category)];
    const at::IntArrayRef shape = prompts.rows.sizes();
    TORCH_CHECK_VALUE(prompts.ids.dim() == 2 && shape.size() == 3 && shape[0] >= 1 &&
                          shape[1] == categories + 1 && shape[2] == int64_t(owners_.size()),
                      "RegionTextSystem: prompts must be [T, L] and rows [K, ", categories + 1,
                      ", ", owners_.size(), "], got ", prompts.ids.sizes(), " and ", shape);
    for (const auto& [name, tensor] : tensors) {
      if (!tensors_.contains(name)) tensors_.add_buffer(name, tensor);
    }
    const Tensor scale = tensors_.at(kScale).detach().exp().clamp_max(kMostScale);
    tensors_.add_training_only(kBias, scale.neg().set_requires_grad(true));
    prompts_.ids = prompts.ids.to(device_);
    gather_weights();
  }

  bool needs_pixels() const override { return false; }

  NamedTensors begin(const StageConfig& stage) override {
    check(stage);
    stage_ = stage;
    NamedTensors learning =
        tensors_.begin(stage.rates, [this](const std::string& name) { return learns(name); });
    gather_weights();
    return learning;
  }

  void begin_encoding(const std::vector<std::string>& branches) override {
    check_branches(branches);
    tensors_.begin_encoding();
    gather_weights();
  }

  std::vector<Loss> losses(const Batch& host, const StepContext& context) override {
    const GradSync& sync = context.sync;
    const Batch batch = placket::to_device(host, device_);
    std::vector<Tensor> views;
    for (const Tensor& images : {batch.images, batch.segmented}) {
      if (images.defined() && images.numel() > 0) {
        views.push_back(sync.gather(unit_rows(embed_images(images))));
      }
    }
    const auto of_all_ranks = [&](const Tensor& rows) {
      return sync.world_size() == 1 ? rows : sync.gather(rows.to(device_)).cpu();
    };
    const Tensor labels = of_all_ranks(host.labels);
    const Tensor classes = of_all_ranks(host.classes.to(at::kByte)).to(at::kBool);
    RandomStream random(context.seed, kRandomPrompts, uint64_t(context.step));
    const int64_t variant = random.below(uint32_t(prompts_.rows.size(0)));
    const Prompts categories = category_prompts(labels, variant);
    const Prompts attributes = attribute_prompts(labels, classes, variant);

    const Tensor words = embed_prompts(categories.ids, attributes.ids);
    const Tensor category_words = words.narrow(0, 0, int64_t(categories.ids.size()));
    const Tensor attribute_words =
        words.narrow(0, category_words.size(0), int64_t(attributes.ids.size()));
    const Tensor scale = tensors_.at(kScale).exp().clamp_max(kMostScale);
    std::vector<Loss> out;
    const auto add = [&](const char* name, const auto& of_view) {
      if (stage_.weight(name) == 0) return;
      Tensor sum = at::zeros({}, scale.options());
      for (const Tensor& x : views) sum = sum + of_view(x);
      out.push_back({name, stage_.weight(name), sum / double(views.size())});
    };
    const Tensor of_category = categories.carried.to(device_);
    const Tensor has_category = of_category.any(1, /*keepdim=*/true).expand_as(of_category);
    add("category_text", [&](const Tensor& x) {
      return info_nce(x, category_words, scale, of_category, {}, has_category, /*symmetric=*/true);
    });
    const Tensor carried = attributes.carried.to(device_), known = attributes.known.to(device_);
    add("attribute_text", [&](const Tensor& x) {
      return info_nce(x, attribute_words, scale, carried, {}, known, /*symmetric=*/false);
    });
    add("attribute_absent", [&](const Tensor& x) {
      const Tensor& bias = tensors_.training_only().front().second;
      return pairwise_sigmoid(x, attribute_words, scale, bias, carried, {}, known);
    });
    if (stage_.weight("view_agreement") > 0) {
      TORCH_CHECK_VALUE(views.size() == 2,
                        "stage: loss 'view_agreement' needs batches of both views, got one");
      out.push_back({"view_agreement", stage_.weight("view_agreement"),
                     1 - (views.at(0) * views.at(1)).sum(1).mean()});
    }
    return out;
  }

  Tensor encode(const Batch& host, const Tensor& attributes) override {
    const at::NoGradGuard no_grad;
    const Batch batch = placket::to_device(host, device_);
    Tensor sum = unit_rows(image(batch.images, image_weights_, {}));
    double views = 1;
    if (batch.segmented.defined() && batch.segmented.numel() > 0) {
      sum = sum + unit_rows(image(batch.segmented, image_weights_, {}));
      views = 2;
    }
    const Tensor scale = tensors_.at(kScale).exp().clamp_max(kMostScale);
    const Tensor rows = word_spaces(sum / views, words(), values_, scale);  // [N, A + 1, D]
    const int64_t per_image = attributes.size(1);
    const Tensor flat = attributes.reshape({-1});
    const Tensor wanted = flat.ge(0).nonzero().squeeze(1);  // on the CPU: no synchronisation
    const Tensor own = wanted.div(per_image, "floor") * rows.size(1) + flat.index_select(0, wanted);
    return rows.flatten(0, 1).index_select(0, own.to(device_, /*non_blocking=*/true));
  }

 private:
  void check(const StageConfig& stage) const {
    check_branches(stage.branches);
    TORCH_CHECK_VALUE(!stage.losses.empty(), "stage: losses must name at least one loss");
    check_known("stage: batch_norm", stage.batch_norm, {"merged", "frozen"});
    check_known("stage: sampler", stage.sampler, {"images", "classes"});
    TORCH_CHECK_VALUE(stage.copies == 1, "stage: copies must be 1 for regions, got ", stage.copies);
    TORCH_CHECK_VALUE(stage.new_attributes == 0,
                      "stage: new_attributes must be 0, since words alone add attributes, got ",
                      stage.new_attributes);
    TORCH_CHECK_VALUE(stage.recompute == 0 || stage.batch_norm == "frozen",
                      "stage: batch_norm must be frozen with recompute, got ", stage.batch_norm);
    for (const auto& [name, weight] : stage.losses) {
      check_known("stage: loss", name, kTextLosses);
      TORCH_CHECK_VALUE(weight > 0, "stage: weight of loss '", name, "' must be positive, got ",
                        weight);
      TORCH_CHECK_VALUE(name != "category_text" || config_.category >= 0, "stage: loss '", name,
                        "' needs a model with a category attribute, got one without");
    }
  }

  static void check_branches(const std::vector<std::string>& branches) {
    TORCH_CHECK_VALUE(!branches.empty(), "stage: branches must name at least one branch, got none");
    for (const std::string& branch : branches) check_known("stage: branch", branch, kTowers);
  }

  bool learns(const std::string& name) const {
    if (name == kBias) return stage_.weight("attribute_absent") > 0;
    if (name == kScale) return true;
    const char* branch = name.starts_with("visual.") ? "image" : "text";
    return std::find(stage_.branches.begin(), stage_.branches.end(), branch) !=
           stage_.branches.end();
  }

  void gather_weights() {
    image_weights_ = tensors_.weights("visual.", image_tower_spec(config_.image));
    text_weights_ = tensors_.weights("", text_tower_spec(config_.text));
  }

  Tensor image(const Tensor& images, at::TensorList weights, const Mode& mode) const {
    return image_tower(images, weights, config_.image, /*tokens=*/false, mode).embedding;
  }

  Tensor embed_images(const Tensor& images) const {
    const Mode mode = {/*training=*/true, /*batch_statistics=*/stage_.batch_norm != "frozen"};
    if (stage_.recompute == 0 || stage_.recompute >= images.size(0)) {
      return image(images, image_weights_, mode);
    }
    return recomputed([this, mode](const Tensor& rows,
                                   at::TensorList weights) { return image(rows, weights, mode); },
                      images, image_weights_, stage_.recompute);
  }

  Tensor text(const Tensor& ids) const {
    return text_tower(ids, text_weights_, config_.text, /*tokens=*/false).embedding;
  }

  // Unit embeddings of two lists of prompts, one after the other.
  Tensor embed_prompts(const std::vector<int64_t>& first,
                       const std::vector<int64_t>& second) const {
    std::vector<int64_t> rows = first;
    rows.insert(rows.end(), second.begin(), second.end());
    if (rows.empty()) {
      return at::zeros({0, text_tower_embedding_dim(config_.text)},
                       at::dtype(at::kFloat).device(device_));
    }
    return unit_rows(text(prompts_.ids.index_select(0, at::tensor(rows, at::kLong).to(device_))));
  }

  // Unit embeddings [M, D] of the values' words, of all variants and no category. They are computed
  // again once the weights have changed.
  const Tensor& words() {
    int64_t version = 0;
    for (const Tensor& weight : text_weights_) version += weight._version();
    if (words_.defined() && version == words_version_) return words_;
    const int64_t variants = prompts_.rows.size(0);
    const Tensor rows = prompts_.rows.select(1, prompts_.rows.size(1) - 1).reshape({-1});
    std::vector<Tensor> parts;
    for (const Tensor& part : rows.to(device_).split(kPromptsAtOnce)) {
      parts.push_back(unit_rows(text(prompts_.ids.index_select(0, part))));
    }
    words_ = unit_rows(at::cat(parts).unflatten(0, {variants, -1}).mean(0));
    words_version_ = version;
    return words_;
  }

  // The category's value of a region, and the row of `rows` that words its prompts.
  int64_t category_of(const Tensor& labels, int64_t region) const {
    const int64_t unknown = prompts_.rows.size(1) - 1;
    if (config_.category < 0) return unknown;
    const int64_t found =
        labels.const_data_ptr<int64_t>()[region * labels.size(1) + config_.category];
    return found < 0 ? unknown : found;
  }

  int64_t prompt(int64_t variant, int64_t category, int64_t value) const {
    const at::IntArrayRef shape = prompts_.rows.sizes();
    return prompts_.rows
        .const_data_ptr<int64_t>()[(variant * shape[1] + category) * shape[2] + value];
  }

  // The prompts of the categories of a batch, each once.
  Prompts category_prompts(const Tensor& labels, int64_t variant) const {
    const int64_t unknown = prompts_.rows.size(1) - 1;
    const int64_t count = labels.size(0);
    std::vector<int64_t> found;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t category = category_of(labels, n);
      if (category != unknown) found.push_back(category);
    }
    sort_unique(found);
    Prompts out;
    const int64_t first = first_value(config_.category);
    for (const int64_t category : found) {
      out.ids.push_back(prompt(variant, unknown, first + category));
    }
    out.carried = at::zeros({count, int64_t(found.size())}, at::kBool);
    bool* carried = out.carried.mutable_data_ptr<bool>();
    for (int64_t n = 0; n < count; ++n) {
      for (size_t u = 0; u < found.size(); ++u) {
        carried[n * int64_t(found.size()) + int64_t(u)] = found[u] == category_of(labels, n);
      }
    }
    return out;
  }

  // The prompts of the other attributes' values that regions of a batch carry, as their categories
  // word them, each once.
  Prompts attribute_prompts(const Tensor& labels, const Tensor& classes, int64_t variant) const {
    const int64_t count = labels.size(0), total = int64_t(owners_.size());
    const bool* carries = classes.const_data_ptr<bool>();
    const int64_t* label = labels.const_data_ptr<int64_t>();
    using Named = std::pair<int64_t, int64_t>;  // value, prompt
    std::vector<Named> found;
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t v = 0; v < total; ++v) {
        if (owners_[size_t(v)] == config_.category || !carries[n * total + v]) continue;
        found.emplace_back(v, prompt(variant, category_of(labels, n), v));
      }
    }
    sort_unique(found);
    Prompts out;
    const int64_t width = int64_t(found.size());
    out.carried = at::zeros({count, width}, at::kBool);
    out.known = at::zeros({count, width}, at::kBool);
    bool* carried = out.carried.mutable_data_ptr<bool>();
    bool* known = out.known.mutable_data_ptr<bool>();
    for (int64_t u = 0; u < width; ++u) {
      const auto [v, id] = found[size_t(u)];
      out.ids.push_back(id);
      for (int64_t n = 0; n < count; ++n) {
        const bool has = carries[n * total + v];
        // Another category's words for what the region has are neither true nor false of it.
        carried[n * width + u] = has && prompt(variant, category_of(labels, n), v) == id;
        known[n * width + u] =
            carried[n * width + u] || (!has && label[n * labels.size(1) + owners_[size_t(v)]] >= 0);
      }
    }
    return out;
  }

  int64_t first_value(int64_t attribute) const {
    return std::accumulate(values_.begin(), values_.begin() + std::max<int64_t>(attribute, 0),
                           int64_t{0});
  }

  template <class T>
  static void sort_unique(std::vector<T>& items) {
    std::sort(items.begin(), items.end());
    items.erase(std::unique(items.begin(), items.end()), items.end());
  }

  RegionTextConfig config_;
  std::vector<int64_t> values_;  // [A]
  std::vector<int64_t> owners_;  // [M] the attribute of each value
  ValuePrompts prompts_;
  StageConfig stage_;
  std::vector<Tensor> image_weights_, text_weights_;
  Tensor words_;  // see words()
  int64_t words_version_ = -1;
};

}  // namespace

std::unique_ptr<System> make_region_text_system(const RegionTextConfig& config,
                                                const std::map<std::string, Tensor>& tensors,
                                                const std::vector<int64_t>& values,
                                                const ValuePrompts& prompts) {
  return std::make_unique<RegionTextSystem>(config, tensors, values, prompts);
}

}  // namespace placket
