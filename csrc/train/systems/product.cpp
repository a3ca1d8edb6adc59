#include "train/systems/product.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/random.h"
#include "models/layers.h"
#include "models/product_head.h"
#include "ops/autocast.h"
#include "ops/class_losses.h"
#include "ops/tri_hard.h"
#include "ops/unit_rows.h"
#include "train/autocast.h"
#include "train/model_system.h"

namespace placket {
namespace {

using at::Tensor;

const std::vector<std::string> kProductBranches = {"product"};
const std::vector<std::string> kProductLosses = {
    "identity", "triplet_hard", "triplet_cross_domain", "positive_distance", "centre", "attribute"};
const std::string kClassifiers = "identity_classifiers";
const std::string kProductCentres = "product_centres";
constexpr double kClassifierDeviation = 1e-3;

TensorSpecs product_specs(const ProductConfig& config) {
  TensorSpecs specs;
  add_specs(specs, "trunk.", trunk_spec(config.trunk));
  add_specs(specs, "head.", product_head_spec(config.head, config.trunk));
  return specs;
}

class ProductSystem : public ModelSystem {
 public:
  ProductSystem(const ProductConfig& config, const ProductOptions& options,
                const std::map<std::string, Tensor>& tensors, const std::vector<int64_t>& values,
                uint64_t seed)
      : ModelSystem("ProductSystem", product_specs(config), tensors),
        config_(config),
        options_(options),
        attributes_(int64_t(values.size())) {
    std::vector<int64_t> owners;
    for (size_t a = 0; a < values.size(); ++a) {
      owners.insert(owners.end(), size_t(values[a]), int64_t(a));
    }
    owners_ = at::tensor(owners, at::kLong).to(device_);
    std::vector<int64_t> whole;
    const std::vector<ProductFeature> features = product_features(config.head);
    for (size_t g = 0; g < features.size(); ++g) {
      if (features[g].whole) whole.push_back(int64_t(g));
    }
    whole_ = at::tensor(whole, at::kLong).to(device_);
    if (config.products > 0) add_training_tensors(int64_t(features.size()), seed);
    gather_weights();
  }

  bool needs_pixels() const override { return false; }

  NamedTensors begin(const StageConfig& stage) override {
    check(stage);
    stage_ = stage;
    NamedTensors learning = tensors_.begin(stage.rates, [this](const std::string& name) {
      if (name == kClassifiers) return stage_.weight("identity") > 0;
      return name != kProductCentres;
    });
    gather_weights();
    return learning;
  }

  void begin_encoding(const std::vector<std::string>& branches) override {
    check_product_branches(branches);
    tensors_.begin_encoding();
    gather_weights();
  }

  std::vector<Loss> losses(const Batch& host, const StepContext& context) override {
    const GradSync& sync = context.sync;
    moving_ = {};
    const Batch batch = placket::to_device(host, device_);
    const bool statistics = stage_.batch_norm != "frozen";
    const ProductOutput out = forward(batch.images, {/*training=*/true, statistics});
    const Tensor labels = sync.gather(batch.labels);
    const Tensor products = labels.select(1, attributes_);
    const Tensor features =
        sync.gather(at_least_float32(out.features)).index_select(1, whole_);  // [N, W, E]

    std::vector<Loss> found;
    const auto add = [&](const char* name, const auto& value) {
      if (stage_.weight(name) > 0) found.push_back({name, stage_.weight(name), value()});
    };
    add("identity", [&] { return identity(sync.gather(at_least_float32(out.necks)), products); });
    add("triplet_hard", [&] { return of_features(features, products, {}).first; });
    const bool across = config_.domains > 1;
    std::pair<Tensor, Tensor> cross;
    if (stage_.weight("triplet_cross_domain") + stage_.weight("positive_distance") > 0) {
      const auto domains = across ? std::optional(labels.select(1, attributes_ + 1)) : std::nullopt;
      cross = of_features(features, products, domains);
    }
    add("triplet_cross_domain", [&] { return cross.first; });
    add("positive_distance", [&] { return cross.second; });
    add("centre", [&] { return centre(features, products); });
    add("attribute", [&] {
      const int64_t classes = owners_.size(0);
      return class_recognition(sync.gather(at_least_float32(out.attributes)),
                               sync.gather(batch.classes.narrow(1, 0, classes)),
                               labels.narrow(1, 0, attributes_).ge(0), owners_,
                               options_.positive_weight);
    });
    return found;
  }

  void stepped() override {
    if (!moving_.rows.defined()) return;
    const at::NoGradGuard no_grad;
    const auto& [rows, own, known] = moving_;
    const Tensor count =
        at::zeros({centres_.size(0)}, centres_.options()).index_add_(0, own, known);
    const Tensor share = known / (1 + count.index_select(0, own));
    const Tensor difference = rows - centres_.index_select(0, own);
    centres_.index_add_(0, own, difference * share.unsqueeze(1), options_.centre_rate);
    moving_ = {};
  }

  Tensor encode(const Batch& host, const Tensor& attributes) override {
    const at::NoGradGuard no_grad;
    const Batch batch = placket::to_device(host, device_);
    const Tensor rows = unit_rows(forward(batch.images, {}).necks.flatten(1));
    const Tensor wanted = attributes.reshape({-1}).ge(0).nonzero().squeeze(1);  // on the CPU
    const Tensor own = wanted.div(attributes.size(1), "floor");
    return rows.index_select(0, own.to(device_, /*non_blocking=*/true));
  }

 private:
  // What moves the centres once the step is made.
  struct Moving {
    Tensor rows;   // [N, W E]
    Tensor own;    // [N] int64, the product of each, 0 for a row without one
    Tensor known;  // [N] 1 for a row with a product, otherwise 0
  };

  void add_training_tensors(int64_t features, uint64_t seed) {
    const int64_t width = product_embedding_dim() / features;
    Tensor classifiers = at::empty({features, config_.products, width}, at::kFloat);
    RandomStream random(seed, kRandomInitialise, 0);
    float* values = classifiers.mutable_data_ptr<float>();
    const double side = kClassifierDeviation * std::sqrt(12.0);
    for (int64_t i = 0; i < classifiers.numel(); ++i) {
      values[i] = float(side * (random.uniform() - 0.5f));
    }
    classifiers_ = classifiers.to(device_).set_requires_grad(true);
    tensors_.add_training_only(kClassifiers, classifiers_);
    centres_ = at::zeros({config_.products, whole_.size(0) * width},
                         at::dtype(at::kFloat).device(device_));
    tensors_.add_training_only(kProductCentres, centres_);
  }

  int64_t product_embedding_dim() const { return tensors_.at("head.neck.weight").size(0); }

  void check(const StageConfig& stage) const {
    check_product_branches(stage.branches);
    TORCH_CHECK_VALUE(config_.products > 0, "stage: model must be given its products to learn");
    TORCH_CHECK_VALUE(!stage.losses.empty(), "stage: losses must name at least one loss");
    check_known("stage: batch_norm", stage.batch_norm, {"merged", "frozen"});
    check_known("stage: sampler", stage.sampler, {"products", "images"});
    TORCH_CHECK_VALUE(stage.new_attributes == 0 && stage.recompute == 0,
                      "stage: new_attributes and recompute must be 0 for products, got ",
                      stage.new_attributes, " and ", stage.recompute);
    for (const auto& [name, weight] : stage.losses) {
      check_known("stage: loss", name, kProductLosses);
      TORCH_CHECK_VALUE(weight > 0, "stage: weight of loss '", name, "' must be positive, got ",
                        weight);
      TORCH_CHECK_VALUE(name != "triplet_cross_domain" || config_.domains > 1, "stage: loss '",
                        name, "' needs photos of shops and of consumers, got one kind");
      TORCH_CHECK_VALUE(name != "attribute" || tensors_.contains("head.attributes.weight"),
                        "stage: loss '", name, "' needs a head with attributes, got '",
                        config_.head, "'");
    }
  }

  static void check_product_branches(const std::vector<std::string>& branches) {
    TORCH_CHECK_VALUE(!branches.empty(), "stage: branches must name at least one branch, got none");
    for (const std::string& branch : branches) {
      check_known("stage: branch", branch, kProductBranches);
    }
  }

  void gather_weights() {
    trunk_ = tensors_.weights("trunk.", trunk_spec(config_.trunk));
    head_ = tensors_.weights("head.", product_head_spec(config_.head, config_.trunk));
  }

  ProductOutput forward(const Tensor& images, const Mode& mode) const {
    const int64_t levels = product_head_levels(config_.head);
    const std::vector<Tensor> maps = trunk_maps(images, trunk_, config_.trunk, levels, mode);
    return product_head(maps, head_, config_.head, config_.trunk, mode);
  }

  // `necks` [N, G, E]
  Tensor identity(const Tensor& necks, const Tensor& products) const {
    const Tensor logits = necks.transpose(0, 1).bmm(classifiers_.transpose(1, 2));  // [G, N, P]
    const Tensor each = products.repeat(necks.size(1));
    const Tensor sum = at::cross_entropy_loss(logits.flatten(0, 1), each, {}, at::Reduction::Sum,
                                              /*ignore_index=*/-1, options_.label_smoothing);
    return sum / each.ge(0).sum().clamp_min(1);
  }

  // The means over features [N, W, E] of the triplet loss and of its absolute term.
  std::pair<Tensor, Tensor> of_features(const Tensor& features, const Tensor& products,
                                        const std::optional<Tensor>& domains) const {
    const auto margin = options_.soft_margin ? std::nullopt : std::optional(options_.margin);
    std::vector<Tensor> triplet, absolute;
    for (const Tensor& rows : features.unbind(1)) {
      auto [loss, distance] = tri_hard(rows, products, domains, margin);
      triplet.push_back(loss);
      absolute.push_back(distance);
    }
    return {at::stack(triplet).mean(), at::stack(absolute).mean()};
  }

  Tensor centre(const Tensor& features, const Tensor& products) {
    const Tensor rows = features.flatten(1);
    const Tensor known = products.ge(0).to(rows.scalar_type());
    const Tensor own = products.clamp_min(0);
    moving_ = {rows.detach(), own, known};
    const Tensor squares = (rows - centres_.index_select(0, own)).square().sum(1) / 2;
    return (squares * known).sum() / (known.sum().clamp_min(1) * double(whole_.size(0)));
  }

  ProductConfig config_;
  ProductOptions options_;
  int64_t attributes_;  // A
  Tensor owners_;       // [M] the attribute of each value
  Tensor whole_;        // [W] features of whole maps
  StageConfig stage_;
  std::vector<Tensor> trunk_, head_;
  Tensor classifiers_;  // [G, P, E]
  Tensor centres_;      // [P, W E]
  Moving moving_;
};

}  // namespace

std::unique_ptr<System> make_product_system(const ProductConfig& config,
                                            const ProductOptions& options,
                                            const std::map<std::string, Tensor>& tensors,
                                            const std::vector<int64_t>& values, uint64_t seed) {
  return std::make_unique<ProductSystem>(config, options, tensors, values, seed);
}

}  // namespace placket
