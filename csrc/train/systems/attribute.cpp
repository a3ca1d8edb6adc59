#include "train/systems/attribute.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "ops/autocast.h"
#include "ops/centre_cross_entropy.h"
#include "ops/centre_losses.h"
#include "ops/class_centres.h"
#include "ops/class_losses.h"
#include "ops/cosine_triplet.h"
#include "ops/crop_resize.h"
#include "ops/region_box.h"
#include "ops/region_patch_info_nce.h"
#include "ops/supervised_contrastive.h"
#include "ops/unit_rows.h"
#include "train/autocast.h"
#include "train/model_system.h"

namespace placket {
namespace {

using at::Tensor;

const std::vector<std::string> kBranches = {"region", "patch"};
const std::vector<std::string> kLosses = {
    "triplet_region",    "triplet_patch",         "region_patch",           "region_patch_align",
    "region_contrast",   "patch_contrast",        "region_classify",        "patch_classify",
    "region_prototype",  "region_centre_triplet", "region_pseudo_label",    "region_consistency",
    "class_recognition", "class_cross_entropy",   "class_instance_triplet", "class_centre_triplet"};
// Those against the network's class centres.
const std::vector<std::string> kCentreLosses = {"region_prototype", "region_centre_triplet",
                                                "region_pseudo_label", "region_consistency"};

const std::string kTable = "attribute_embedding.weight";
const std::string kCentres = "class_centres";
const std::string kLearned = ".centres";  // behind a branch
constexpr int64_t kRegionView = 224;      // the published one, which boxes are counted in

// Images under one attribute each: view v is row images[v] under attributes[v].
struct Views {
  Tensor images;      // [V] int64
  Tensor attributes;  // [V] int64
  Tensor values;      // [V] int64, -1 where the image has none of that attribute
};

class AttributeSystem : public ModelSystem {
 public:
  AttributeSystem(const NetworkConfig& config, const AttributeOptions& options,
                  const std::map<std::string, Tensor>& tensors, const std::vector<int64_t>& values,
                  const Preprocess& preprocess, uint64_t seed, const ExtraLosses& extra_losses)
      : ModelSystem("AttributeSystem", network_spec(config), tensors),
        config_(config),
        options_(options),
        values_(values),
        seed_(seed),
        extra_losses_(extra_losses) {
    for (const auto& [name, loss] : extra_losses_) {
      TORCH_CHECK_VALUE(!contains(kLosses, name),
                        "AttributeSystem: extra_losses must have names of their own, got '", name,
                        "', which is a loss of this system");
    }
    std::copy(preprocess.mean.begin(), preprocess.mean.end(), mean_.begin());
    std::copy(preprocess.std.begin(), preprocess.std.end(), std_.begin());
    squashed_ = preprocess.fit == "squash";
    TORCH_CHECK_VALUE(int64_t(values.size()) == config.attributes,
                      "AttributeSystem: values must have one entry for each of the model's ",
                      config.attributes, " attributes, got ", values.size());
    const std::vector<int64_t> of_head = head_classes(config.head);
    TORCH_CHECK_VALUE(of_head.empty() || of_head == values,
                      "AttributeSystem: values must be the head's classes, ",
                      at::IntArrayRef(of_head), ", got ", at::IntArrayRef(values));
    for (const TensorSpec& spec : tensors_.specs()) {
      if (spec.attribute_axis >= 0) attribute_axes_[spec.name] = spec.attribute_axis;
    }
    if (tensors_.contains(kCentres)) class_centres_ = tensors_.at(kCentres);
    const int64_t classes = std::accumulate(values.begin(), values.end(), int64_t{0});
    TORCH_CHECK_VALUE(config.classes == 0 || config.classes == classes,
                      "AttributeSystem: values must be the model's ", config.classes,
                      " classes in all, got ", classes);
    TORCH_CHECK_VALUE(config.learned_classes == 0 || config.learned_classes == classes,
                      "AttributeSystem: values must be the model's ", config.learned_classes,
                      " learned classes in all, got ", classes);
    make_classes();
  }

  NamedTensors begin(const StageConfig& stage) override {
    check(stage);
    stage_ = stage;
    begin_centres();
    NamedTensors learning =
        tensors_.begin(stage.rates, [this](const std::string& name) { return learns(name); });
    gather_weights();
    return learning;
  }

  void begin_encoding(const std::vector<std::string>& branches) override {
    check_branches(branches);
    stage_ = StageConfig();
    stage_.branches = branches;
    tensors_.begin_encoding();
    gather_weights();
  }

  bool needs_pixels() const override { return uses("patch"); }

  std::vector<Loss> losses(const Batch& host, const StepContext& context) override {
    refresh_weights();
    Views views = choose_views(host, context);
    const Batch batch = to_device(host, device_);
    views = {to_device(views.images), to_device(views.attributes), to_device(views.values)};
    const bool every_attribute = stage_.weight("region_contrast") > 0 ||
                                 stage_.weight("region_classify") > 0 || uses_centres() ||
                                 (!extra_losses_.empty() && !uses("patch"));
    const int64_t per_image =
        every_attribute ? config_.attributes : views.attributes.size(0) / host.images.size(0);
    const Tensor attributes =
        every_attribute ? all_attributes_ : views.attributes.view({host.images.size(0), per_image});
    const HeadOutput regions =
        region_forward(batch.images, attributes, contains(stage_.branches, "region"),
                       stage_.weight("region_patch") > 0);
    // Place of each view among the rows of `regions`.
    const Tensor own = every_attribute ? views.images * per_image + views.attributes
                                       : at::arange(views.images.size(0), views.images.options());
    const Tensor region = rows_of(regions.embedding, own);

    std::vector<Loss> out;
    const auto add = [&](const char* name, const auto& value) {
      if (stage_.weight(name) > 0) out.push_back({name, stage_.weight(name), value()});
    };
    add("triplet_region", [&] { return triplet(region); });
    add("region_contrast", [&] { return contrast_all(regions.embedding, batch.labels, context); });
    add("region_classify", [&] { return classify_all(regions.embedding, batch.labels, context); });
    add_class_losses(regions, batch, views, context, out);
    if (uses_centres()) add_centre_losses(regions.embedding, batch.labels, context, out);
    if (!uses("patch")) {
      add_extra_losses(out, unit_rows(regions.embedding.flatten(0, 1)),
                       all_attributes_.repeat(batch.labels.size(0)), batch.labels.flatten(),
                       context);
      return out;
    }

    const Tensor attention = rows_of(regions.attention, own);
    const Tensor patch = patch_forward(batch, views, attention, contains(stage_.branches, "patch"));
    add("triplet_patch", [&] { return triplet(patch); });
    add("region_patch", [&] {
      return region_patch(region, patch, rows_of(regions.background, own), views, context);
    });
    add("region_patch_align", [&] {
      const Tensor cosine = (unit_rows(region) * unit_rows(patch)).sum(1);
      return (options_.align_margin - cosine).clamp_min(0).mean();
    });
    add("patch_contrast", [&] { return contrast(patch, views.attributes, views.values, context); });
    add("patch_classify",
        [&] { return classify(patch, patch_centres_, views.attributes, views.values, context); });
    add_extra_losses(out, joint(region, patch), views.attributes, views.values, context);
    return out;
  }

  Tensor encode(const Batch& host, const Tensor& attributes) override {
    const at::NoGradGuard no_grad;
    refresh_weights();
    const Batch batch = to_device(host, device_);
    const int64_t per_image = attributes.size(1);
    const Tensor flat = attributes.reshape({-1});
    const Tensor wanted = flat.ge(0).nonzero().squeeze(1);  // on the CPU: no synchronisation
    const Tensor own = to_device(wanted);
    const Views views = {to_device(wanted.div(per_image, "floor")),
                         to_device(flat.index_select(0, wanted)), Tensor()};
    const HeadOutput regions = region_forward(batch.images, to_device(attributes.clamp_min(0)),
                                              /*training=*/false, /*background=*/false);
    const Tensor region = rows_of(regions.embedding, own);
    if (!uses("patch")) return unit_rows(region);
    return joint(region, patch_forward(batch, views, rows_of(regions.attention, own),
                                       /*training=*/false));
  }

 private:
  // Before a forward pass: where only some rows of a tensor learn, its parts are joined anew.
  void refresh_weights() {
    if (stage_.new_attributes > 0) gather_weights();
  }

  void gather_weights() {
    region_trunk_ = weights("region.trunk.", trunk_spec(config_.trunk));
    region_head_ = weights("region.head.", head_spec(config_.head, sizes(config_.trunk)));
    if (tensors_.contains(kTable)) table_ = weights("", {{kTable, {}}}).front();
    const bool learns_classes = config_.learned_classes > 0;
    if (learns_classes) region_centres_ = weights("region", {{kLearned, {}}}).front();
    if (!config_.patch_trunk.empty()) {
      if (learns_classes) patch_centres_ = weights("patch", {{kLearned, {}}}).front();
      patch_trunk_ = weights("patch.trunk.", trunk_spec(config_.patch_trunk));
      patch_head_ =
          weights("patch.head.", head_spec(config_.patch_head, sizes(config_.patch_trunk)));
    }
  }

  HeadSizes sizes(const std::string& trunk) const {
    return {trunk_channels(trunk), config_.attributes};
  }

  void make_classes() {
    std::vector<int64_t> offsets, owners;
    for (size_t a = 0; a < values_.size(); ++a) {
      offsets.push_back(int64_t(owners.size()));
      owners.insert(owners.end(), size_t(values_[a]), int64_t(a));
    }
    class_offsets_ = to_device(at::tensor(offsets, at::kLong));
    owners_ = to_device(at::tensor(owners, at::kLong));
    all_attributes_ = at::arange(config_.attributes, at::dtype(at::kLong).device(device_));
  }

  // Gives centres that begin to learn a direction, since a zero one has none; those of old
  // attributes stay zero where new ones alone learn. Only the direction counts, so a cube serves as
  // well as a ball.
  void begin_centres() {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < kBranches.size(); ++i) {
      if (stage_.weight(kBranches[i] + "_classify") == 0) continue;
      Tensor centres = tensors_.at(kBranches[i] + kLearned);
      const Tensor absent = centres.ne(0).any(1).logical_not().cpu();
      Tensor initial = at::empty(centres.sizes(), at::kFloat);
      RandomStream random(seed_, kRandomInitialise, i);
      float* values = initial.mutable_data_ptr<float>();
      for (int64_t k = 0; k < initial.numel(); ++k) values[k] = random.uniform() - 0.5f;
      const int64_t known = stage_.new_attributes > 0 ? centres.size(0) - new_classes() : 0;
      const Tensor rows = to_device(
          absent.narrow(0, known, centres.size(0) - known).nonzero().squeeze(1).add(known));
      centres.index_copy_(0, rows, to_device(initial).index_select(0, rows));
    }
  }

  void check(const StageConfig& stage) const {
    check_branches(stage.branches);
    TORCH_CHECK_VALUE(!stage.losses.empty(), "stage: losses must name at least one loss");
    TORCH_CHECK_VALUE(stage.recompute == 0, "stage: recompute must be 0 for attributes, got ",
                      stage.recompute);
    check_known("stage: batch_norm", stage.batch_norm, {"grouped", "merged", "frozen"});
    check_known("stage: sampler", stage.sampler, {"triplets", "images", "classes"});
    const bool triplets = stage.sampler == "triplets";
    TORCH_CHECK_VALUE(triplets || stage.batch_norm != "grouped",
                      "stage: batch_norm must be merged or frozen with sampler ", stage.sampler,
                      ", got grouped");
    TORCH_CHECK_VALUE(stage.new_attributes >= 0 && stage.new_attributes < config_.attributes,
                      "stage: new_attributes must be from 0 to less than the ", config_.attributes,
                      " attributes, got ", stage.new_attributes);
    if (stage.new_attributes > 0) {
      TORCH_CHECK_VALUE(stage.batch_norm == "frozen",
                        "stage: batch_norm must be frozen with new_attributes, got ",
                        stage.batch_norm);
      // A decay would move rows that have no gradient.
      TORCH_CHECK_VALUE(stage.weight_decay == 0,
                        "stage: weight_decay must be 0 with new_attributes, got ",
                        stage.weight_decay);
    }
    TORCH_CHECK_VALUE(stage.images_of_class >= 1, "stage: images_of_class must be positive, got ",
                      stage.images_of_class);
    TORCH_CHECK_VALUE(
        triplets || (stage.views_per_image >= 1 && stage.views_per_image <= config_.attributes),
        "stage: views_per_image must be from 1 to the ", config_.attributes, " attributes, got ",
        stage.views_per_image);
    std::vector<std::string> known = kLosses;
    for (const auto& [extra, loss] : extra_losses_) {
      known.push_back(extra);
      const bool used =
          std::any_of(stage.losses.begin(), stage.losses.end(),
                      [&name = extra](const auto& given) { return given.first == name; });
      TORCH_CHECK_VALUE(used, "stage: losses must give a weight for '", extra,
                        "' of extra_losses, got none");
    }
    for (const auto& [name, weight] : stage.losses) {
      check_known("stage: loss", name, known);
      TORCH_CHECK_VALUE(weight > 0, "stage: weight of loss '", name, "' must be positive, got ",
                        weight);
      if (extra_losses_.contains(name)) continue;
      TORCH_CHECK_VALUE(triplets || !name.starts_with("triplet_"), "stage: loss '", name,
                        "' needs sampler triplets, got ", stage.sampler);
      TORCH_CHECK_VALUE(!contains(kCentreLosses, name) || config_.classes > 0, "stage: loss '",
                        name, "' needs a network that keeps class centres, got one without");
      TORCH_CHECK_VALUE(!name.ends_with("_classify") || config_.learned_classes > 0,
                        "stage: loss '", name,
                        "' needs a network that learns class centres, got one without");
      TORCH_CHECK_VALUE(name != "region_consistency" || stage.copies == 2, "stage: loss '", name,
                        "' needs copies 2, got ", stage.copies);
      const std::string branch = name.find("patch") == std::string::npos ? "region" : "patch";
      TORCH_CHECK_VALUE(contains(stage.branches, branch), "stage: loss '", name, "' needs branch '",
                        branch, "' among the branches that train");
      TORCH_CHECK_VALUE(!name.starts_with("class_") || !head_classes(config_.head).empty(),
                        "stage: loss '", name, "' needs a head with a class sub-network, got '",
                        config_.head, "'");
      TORCH_CHECK_VALUE(
          !name.starts_with("region_patch") ||
              head_embedding_dim(config_.head) == head_embedding_dim(config_.patch_head),
          "stage: loss '", name, "' needs embeddings of one width from both branches, got ",
          head_embedding_dim(config_.head), " and ", head_embedding_dim(config_.patch_head));
      TORCH_CHECK_VALUE(name != "region_patch" || head_has_background(config_.head),
                        "stage: loss 'region_patch' needs a region head with a background, got '",
                        config_.head, "'");
    }
  }

  void check_branches(const std::vector<std::string>& branches) const {
    TORCH_CHECK_VALUE(!branches.empty(), "stage: branches must name at least one branch, got none");
    for (const std::string& branch : branches) check_known("stage: branch", branch, kBranches);
    TORCH_CHECK_VALUE(
        !config_.patch_trunk.empty() || !contains(branches, "patch"),
        "stage: branch 'patch' is not part of this model, whose patch_trunk is empty");
  }

  static bool contains(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  }

  bool uses_centres() const {
    return std::any_of(kCentreLosses.begin(), kCentreLosses.end(),
                       [&](const std::string& loss) { return stage_.weight(loss) > 0; });
  }

  // Whether a branch takes part in the stage; the region branch always does, for its attention.
  bool uses(const std::string& branch) const {
    return branch == "region" || contains(stage_.branches, branch);
  }

  // Whether a parameter learns in the stage. The attribute table belongs to the region branch.
  bool learns(const std::string& name) const {
    const std::string branch = name.starts_with("patch.") ? "patch" : "region";
    if (name == branch + kLearned) return stage_.weight(branch + "_classify") > 0;
    if (stage_.new_attributes > 0 && !attribute_axes_.contains(name)) return false;
    return contains(stage_.branches, branch);
  }

  std::vector<Tensor> weights(const std::string& prefix, const TensorSpecs& specs) const {
    std::vector<Tensor> out = tensors_.weights(prefix, specs);
    for (size_t i = 0; i < out.size(); ++i) out[i] = what_learns(prefix + specs[i].name, out[i]);
    return out;
  }

  // The tensor; its gradient may be that of the new attributes' rows alone.
  Tensor what_learns(const std::string& name, const Tensor& tensor) const {
    const auto found = attribute_axes_.find(name);
    if (stage_.new_attributes == 0 || found == attribute_axes_.end()) return tensor;
    const int64_t dim = found->second;
    const int64_t fresh = name.ends_with(kLearned) ? new_classes() : stage_.new_attributes;
    const int64_t old = tensor.size(dim) - fresh;
    return old <= 0 ? tensor
                    : at::cat({tensor.detach().narrow(dim, 0, old), tensor.narrow(dim, old, fresh)},
                              dim);
  }

  int64_t new_classes() const {
    return std::accumulate(values_.end() - stage_.new_attributes, values_.end(), int64_t{0});
  }

  Tensor to_device(const Tensor& tensor) const { return tensor.to(device_, /*non_blocking=*/true); }
  static Batch to_device(const Batch& batch, at::Device device) {
    return placket::to_device(batch, device);
  }

  // [N, K, ...] and places among N * K to [V, ...].
  static Tensor rows_of(const Tensor& tensor, const Tensor& places) {
    return tensor.flatten(0, 1).index_select(0, places);
  }

  Views choose_views(const Batch& host, const StepContext& context) const {
    const int64_t images = host.images.size(0);
    if (stage_.sampler == "triplets") {
      return {at::arange(images, at::kLong), host.attributes, host.values};
    }
    const int64_t per_image = uses("patch") ? stage_.views_per_image : 1;
    const Tensor rows = at::arange(images * per_image, at::kLong).div(per_image, "floor");
    Tensor attributes = at::empty({images * per_image}, at::kLong);
    const auto labels = host.labels.accessor<int64_t, 2>();
    int64_t* chosen = attributes.mutable_data_ptr<int64_t>();
    for (int64_t n = 0; n < images; ++n) {
      RandomStream random(context.seed, kRandomViews, uint64_t(context.step),
                          uint32_t(host.plan.positions[size_t(n)]));
      std::vector<int64_t> order(static_cast<size_t>(config_.attributes));
      std::iota(order.begin(), order.end(), 0);
      for (size_t i = order.size(); i > 1; --i)
        std::swap(order[i - 1], order[random.below(uint32_t(i))]);
      std::stable_partition(order.begin(), order.end(),
                            [&](int64_t a) { return labels[n][a] >= 0; });
      std::copy_n(order.begin(), per_image, chosen + n * per_image);
    }
    const Tensor values =
        host.labels.index_select(0, rows).gather(1, attributes.unsqueeze(1)).squeeze(1);
    return {rows, attributes, values};
  }

  Mode mode(bool training) const {
    if (!training) return {};
    return {/*training=*/true, /*batch_statistics=*/stage_.batch_norm != "frozen",
            /*groups=*/stage_.batch_norm == "grouped" ? 3 : 1};
  }

  // For K attributes of each image.
  HeadOutput region_forward(const Tensor& images, const Tensor& attributes, bool training,
                            bool background) const {
    const at::AutoGradMode grad(training && at::GradMode::is_enabled());
    const Tensor features = trunk_features(images, region_trunk_, config_.trunk, mode(training));
    HeadOutput out = attribute_head(features, table_, attributes, region_head_, config_.head,
                                    background, mode(training));
    if (out.attention.defined()) out.attention = out.attention.detach();
    return out;
  }

  // `attention` [V, h, w]
  Tensor patch_forward(const Batch& batch, const Views& views, const Tensor& attention,
                       bool training) const {
    const at::AutoGradMode grad(training && at::GradMode::is_enabled());
    const Tensor boxes =
        region_box(attention.to(at::kFloat), batch.sizes.index_select(0, views.images),
                   options_.box_threshold, kRegionView, squashed_);
    const bool half = at::autocast::is_autocast_enabled(device_.type());
    const Tensor crops = crop_resize(batch.pixels, batch.offsets, batch.sizes, boxes, views.images,
                                     options_.patch_size, options_.patch_size, mean_, std_,
                                     half ? at::kBFloat16 : at::kFloat,
                                     /*channels_last=*/true, /*flip=*/std::nullopt,
                                     /*windows=*/std::nullopt);
    const Tensor features =
        trunk_features(crops, patch_trunk_, config_.patch_trunk, mode(training));
    return attribute_head(features, table_, views.attributes.unsqueeze(1), patch_head_,
                          config_.patch_head, /*background=*/false, mode(training))
        .embedding.squeeze(1);
  }

  Tensor triplet(const Tensor& embedding) const {
    const auto roles = embedding.chunk(3);
    return cosine_triplet(roles[0], roles[1], roles[2], options_.margin).mean();
  }

  // Rows of the table of all classes; -1 stays.
  Tensor classes(const Tensor& attributes, const Tensor& values) const {
    return (class_offsets_.index_select(0, attributes) + values).where(values.ge(0), -1);
  }

  Tensor contrast(const Tensor& embedding, const Tensor& attributes, const Tensor& values,
                  const StepContext& context) const {
    return supervised_contrastive(context.sync.gather(embedding), context.sync.gather(values),
                                  context.sync.gather(attributes), options_.contrast_temperature,
                                  /*inside=*/false);
  }

  Tensor classify(const Tensor& embedding, const Tensor& centres, const Tensor& attributes,
                  const Tensor& values, const StepContext& context) const {
    return centre_cross_entropy(
        context.sync.gather(embedding), centres, owners_, context.sync.gather(attributes),
        context.sync.gather(classes(attributes, values)), options_.classify_scale);
  }

  // [N, A, E] and labels [N, A]
  Tensor contrast_all(const Tensor& embedding, const Tensor& labels,
                      const StepContext& context) const {
    return contrast(embedding.flatten(0, 1), all_attributes_.repeat(labels.size(0)),
                    labels.flatten(), context);
  }

  Tensor classify_all(const Tensor& embedding, const Tensor& labels,
                      const StepContext& context) const {
    return classify(embedding.flatten(0, 1), region_centres_,
                    all_attributes_.repeat(labels.size(0)), labels.flatten(), context);
  }

  // Appends the losses of embeddings [N, A, E] with labels [N, A] against the centres as they are;
  // then the embeddings move the centres.
  void add_centre_losses(const Tensor& embedding, const Tensor& labels, const StepContext& context,
                         std::vector<Loss>& out) {
    const GradSync& sync = context.sync;
    const Tensor each = all_attributes_.repeat(labels.size(0));
    const Tensor z = sync.gather(at_least_float32(embedding).flatten(0, 1));
    const Tensor attributes = sync.gather(each);
    const Tensor own = sync.gather(classes(each, labels.flatten()));
    // A copy, which the backward pass still reads when the centres have moved.
    const ClassCentres known = {class_centres_.clone(), owners_};
    const double temperature = options_.centre_temperature;
    const auto add = [&](const char* name, const auto& value) {
      if (stage_.weight(name) > 0) out.push_back({name, stage_.weight(name), value()});
    };
    add("region_prototype",
        [&] { return prototype_cross_entropy(z, known, attributes, own, temperature); });
    add("region_centre_triplet",
        [&] { return centre_triplet(z, known, attributes, own, options_.margin); });
    add("region_pseudo_label", [&] {
      return pseudo_label_cross_entropy(z, known, attributes, own, temperature,
                                        options_.pseudo_confidence);
    });
    add("region_consistency", [&] {
      const Tensor pairs = z.view({-1, 2, config_.attributes, z.size(1)});
      const auto view = [&](int64_t copy) { return pairs.select(1, copy).flatten(0, 1); };
      return assignment_consistency(view(0), view(1), known,
                                    attributes.narrow(0, 0, attributes.size(0) / 2), temperature);
    });
    const at::NoGradGuard no_grad;
    class_centres_.copy_(class_centres(class_centres_, z, own, options_.centre_momentum));
  }

  void add_class_losses(const HeadOutput& regions, const Batch& batch, const Views& views,
                        const StepContext& context, std::vector<Loss>& out) {
    const GradSync& sync = context.sync;
    const auto add = [&](const char* name, const auto& value) {
      if (stage_.weight(name) > 0) out.push_back({name, stage_.weight(name), value()});
    };
    const auto logits = [&] { return sync.gather(at_least_float32(regions.class_logits)); };
    add("class_recognition", [&] {
      return class_recognition(logits(), gather_bool(batch.classes, sync),
                               sync.gather(batch.labels).ge(0), owners_, options_.positive_weight);
    });
    add("class_cross_entropy", [&] {
      const Tensor labels = sync.gather(batch.labels);
      return class_cross_entropy(logits(), (class_offsets_ + labels).where(labels.ge(0), -1),
                                 owners_);
    });
    if (stage_.weight("class_instance_triplet") + stage_.weight("class_centre_triplet") == 0)
      return;
    const Tensor rows = at::arange(batch.labels.size(0), batch.labels.options());
    const Views anchors =
        batch.attributes.numel() > 0 ? Views{rows, batch.attributes, batch.values} : views;
    const Tensor own = sync.gather(classes(anchors.attributes, anchors.values));
    const ClassViews seen = class_views(regions.class_embedding, batch, anchors, own, sync);
    add("class_instance_triplet", [&] { return class_instance_triplet(seen, options_.margin); });
    add("class_centre_triplet", [&] {
      const Tensor centres = move_centres(seen, own).index_select(0, own.clamp_min(0));
      return class_centre_triplet(seen, centres, options_.margin);
    });
  }

  // All ranks' images in the spaces of all ranks' views, whose classes are `own` [V]. A rank sends
  // its images in these V spaces and not in all M.
  ClassViews class_views(const Tensor& embedding, const Batch& batch, const Views& views,
                         const Tensor& own, const GradSync& sync) const {
    const Tensor columns = own.clamp_min(0);
    const Tensor labelled = own.ge(0);
    const Tensor carries = gather_bool(batch.classes, sync).index_select(1, columns) & labelled;
    const Tensor known =
        sync.gather(batch.labels).ge(0).index_select(1, owners_.index_select(0, columns)) &
        labelled;
    // An index list, whose backward pass adds up in a fixed order where two views share a class.
    const Tensor selected = at_least_float32(embedding).index({at::indexing::Slice(), columns});
    return {sync.gather(selected), sync.gather(views.images + sync.rank() * batch.images.size(0)),
            carries, known & ~carries};
  }

  // The centres after the batch's own images have moved them.
  Tensor move_centres(const ClassViews& seen, const Tensor& own) {
    const at::NoGradGuard no_grad;
    class_centres_.copy_(
        class_centres(class_centres_, anchors_of(seen), own, options_.centre_momentum));
    return class_centres_;
  }

  static Tensor gather_bool(const Tensor& rows, const GradSync& sync) {
    return sync.gather(rows.to(at::kByte)).to(at::kBool);
  }

  Tensor region_patch(const Tensor& region, const Tensor& patch, const Tensor& background,
                      const Views& views, const StepContext& context) const {
    // A view without a label is a positive of nothing but itself.
    const Tensor labels = classes(views.attributes, views.values);
    const GradSync& sync = context.sync;
    Tensor joined = sync.gather(labels);
    joined = joined.where(joined.ge(0), -1 - at::arange(joined.size(0), joined.options()));
    return region_patch_info_nce(
        sync.gather(at_least_float32(region)), sync.gather(at_least_float32(patch)),
        sync.gather(at_least_float32(background)), joined, sync.gather(views.attributes),
        options_.temperature, options_.alpha);
  }

  // Rows of the joint similarity: [V, E] each to [V, 2 E] of unit length.
  Tensor joint(const Tensor& region, const Tensor& patch) const {
    const double beta = options_.region_weight;
    return at::cat({unit_rows(region) * std::sqrt(beta), unit_rows(patch) * std::sqrt(1.0 - beta)},
                   1);
  }

  void add_extra_losses(std::vector<Loss>& out, const Tensor& embedding, const Tensor& attributes,
                        const Tensor& values, const StepContext& context) const {
    if (extra_losses_.empty()) return;
    const Tensor all = context.sync.gather(classes(attributes, values));
    // Others' losses know no rows without a label. On CUDA this waits for the device, as most of
    // them do themselves.
    const Tensor known = all.ge(0).nonzero().squeeze(1);
    const Tensor labels = all.index_select(0, known);
    const Tensor rows = context.sync.gather(embedding).index_select(0, known);
    const AutocastGuard float32(device_.type(), /*enabled=*/false);
    for (const auto& [name, loss] : extra_losses_) {
      const Tensor value = loss(rows, labels);
      TORCH_CHECK_VALUE(value.numel() == 1 && value.is_floating_point(), "stage: loss '", name,
                        "' must return one floating-point number, got ", value.scalar_type(), " ",
                        value.sizes());
      out.push_back({name, stage_.weight(name), value.reshape({}).to(at::kFloat)});
    }
  }

  NetworkConfig config_;
  AttributeOptions options_;
  std::vector<int64_t> values_;
  uint64_t seed_;  // of the centres' initial values
  ExtraLosses extra_losses_;
  std::array<double, 3> mean_, std_;
  bool squashed_;  // inputs are whole pictures, each side resized by itself
  StageConfig stage_;
  // Of the parameters that have one: rows of attributes, or of centres of their classes.
  std::map<std::string, int64_t> attribute_axes_;
  Tensor class_centres_;   // [classes, head_centre_dim]; undefined where the network keeps none
  Tensor class_offsets_;   // [A]
  Tensor owners_;          // [classes] attribute of each
  Tensor all_attributes_;  // [A]
  Tensor table_;           // of attributes; undefined where no head reads one
  Tensor region_centres_, patch_centres_;  // that it learns; undefined where it learns none
  std::vector<Tensor> region_trunk_, region_head_, patch_trunk_, patch_head_;
};

}  // namespace

std::unique_ptr<System> make_attribute_system(const NetworkConfig& config,
                                              const AttributeOptions& options,
                                              const std::map<std::string, Tensor>& tensors,
                                              const std::vector<int64_t>& values,
                                              const Preprocess& preprocess, uint64_t seed,
                                              const ExtraLosses& extra_losses) {
  return std::make_unique<AttributeSystem>(config, options, tensors, values, preprocess, seed,
                                           extra_losses);
}

}  // namespace placket
