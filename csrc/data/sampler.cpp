#include "data/sampler.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <numeric>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "base/random.h"

namespace placket {
namespace {

// The three rows of a triplet have positions in the epoch of 32 bits.
constexpr int64_t kMaxTriplets = std::numeric_limits<uint32_t>::max() / 3;

// Which part of [0, count) belongs to a rank.
std::pair<int64_t, int64_t> share(int64_t count, int64_t rank, int64_t world_size) {
  return {count * rank / world_size, count * (rank + 1) / world_size};
}

void check_batch(const char* source, int64_t batch, int64_t rank, int64_t world_size) {
  TORCH_CHECK_VALUE(world_size >= 1, source, ": world_size must be positive, got ", world_size);
  TORCH_CHECK_VALUE(rank >= 0 && rank < world_size, source, ": rank must be in [0, ", world_size,
                    "), got ", rank);
  TORCH_CHECK_VALUE(batch >= 1 && batch % world_size == 0, source,
                    ": batch must be a positive multiple of world_size ", world_size, ", got ",
                    batch);
}

// The images of one attribute, grouped by value.
struct ValueClasses {
  int32_t attribute = 0;
  std::vector<int64_t> begin;    // [values + 1]: the images of value v are [begin[v], begin[v + 1])
  std::vector<int32_t> images;   // within a value ascending and each once
  std::vector<int32_t> serving;  // values with an image, ascending
  std::vector<int32_t> anchors;  // values with two images and something to serve as a negative
  // [anchors] Places in `serving` that cannot be the negative's value, ascending: the anchor's own
  // and, with exclude_shared, those of which every image carries the anchor's value too.
  std::vector<std::vector<uint32_t>> excluded;
  // With exclude_shared: v * values + w -> images that carry both values; no entry where none.
  std::unordered_map<int64_t, int64_t> both;

  int64_t values() const { return int64_t(begin.size()) - 1; }
  int64_t size(int64_t value) const { return begin[value + 1] - begin[value]; }
  int64_t shared(int64_t v, int64_t w) const {
    const auto found = both.find(v * values() + w);
    return found == both.end() ? 0 : found->second;
  }
};

ValueClasses make_classes(const LabelTable& labels, int32_t attribute, bool exclude_shared) {
  ValueClasses classes;
  classes.attribute = attribute;
  const int64_t values = labels.values[attribute];
  std::vector<std::vector<int32_t>> images(values);
  for (int64_t image = 0; image < labels.images(); ++image) {
    std::vector<int32_t> own;
    for (int64_t i = labels.begin[image]; i < labels.begin[image + 1]; ++i) {
      if (labels.attribute[i] == attribute) own.push_back(labels.value[i]);
    }
    std::sort(own.begin(), own.end());
    own.erase(std::unique(own.begin(), own.end()), own.end());
    for (const int32_t v : own) images[v].push_back(int32_t(image));
    if (!exclude_shared) continue;
    for (const int32_t v : own) {
      for (const int32_t w : own) {
        if (v != w) ++classes.both[v * values + w];
      }
    }
  }
  classes.begin.push_back(0);
  for (int64_t v = 0; v < values; ++v) {
    classes.images.insert(classes.images.end(), images[v].begin(), images[v].end());
    classes.begin.push_back(int64_t(classes.images.size()));
    if (!images[v].empty()) classes.serving.push_back(int32_t(v));
  }
  for (const int32_t v : classes.serving) {
    if (classes.size(v) < 2) continue;
    std::vector<uint32_t> excluded;
    for (uint32_t place = 0; place < classes.serving.size(); ++place) {
      const int32_t w = classes.serving[place];
      if (w == v || classes.shared(v, w) == classes.size(w)) excluded.push_back(place);
    }
    if (excluded.size() == classes.serving.size()) continue;
    classes.anchors.push_back(v);
    classes.excluded.push_back(std::move(excluded));
  }
  return classes;
}

class TripletSource final : public BatchSource {
 public:
  TripletSource(std::shared_ptr<const LabelTable> labels, const TripletSamplerConfig& config)
      : labels_(std::move(labels)), config_(config) {
    const char* name = "triplet sampler";
    check_batch(name, config.batch, config.rank, config.world_size);
    TORCH_CHECK_VALUE(config.triplets >= config.batch, name,
                      ": triplets must be at least one batch of ", config.batch, ", got ",
                      config.triplets);
    TORCH_CHECK_VALUE(config.triplets <= kMaxTriplets, name, ": triplets must be at most ",
                      kMaxTriplets, ", got ", config.triplets);
    check_labels(name, *labels_);
    TORCH_CHECK_VALUE(labels_->images() <= std::numeric_limits<int32_t>::max(), name,
                      ": images must fit in 31 bits, got ", labels_->images());
    std::ostringstream left_out;
    for (size_t a = 0; a < labels_->values.size(); ++a) {
      ValueClasses classes = make_classes(*labels_, int32_t(a), config.exclude_shared);
      if (classes.anchors.empty()) {
        left_out << (left_out.tellp() > 0 ? ", " : "") << "attribute " << a << " has images under "
                 << classes.serving.size() << " of " << labels_->values[a] << " values";
      } else {
        classes_.push_back(std::move(classes));
      }
    }
    TORCH_CHECK_VALUE(!classes_.empty(), name,
                      ": labels must have an attribute with two images under one value and an image"
                      " under another",
                      config.exclude_shared ? " that does not share it" : "", ", got ",
                      labels_->images(), " images: ", left_out.str());
  }

  int64_t steps_per_epoch() const override { return config_.triplets / config_.batch; }

  BatchPlan plan(int64_t step) const override {
    TORCH_CHECK_VALUE(step >= 0, "triplet sampler: step must not be negative, got ", step);
    const int64_t steps = steps_per_epoch();
    const int64_t batch = config_.batch;
    const auto [first, last] = share(batch, config_.rank, config_.world_size);
    const int64_t rows = last - first;
    BatchPlan plan;
    plan.epoch = step / steps;
    for (auto* column : {&plan.positions, &plan.images, &plan.attributes, &plan.values}) {
      column->resize(3 * rows);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t triplet = step % steps * batch + first + row;
      const Triplet drawn = draw(plan.epoch, uint32_t(triplet));
      for (int64_t role = 0; role < 3; ++role) {
        const int64_t to = role * rows + row;
        plan.positions[to] = step % steps * 3 * batch + role * batch + first + row;
        plan.images[to] = drawn.images[role];
        plan.attributes[to] = drawn.attribute;
        plan.values[to] = role == 2 ? drawn.negative_value : drawn.value;
      }
    }
    return plan;
  }

 private:
  struct Triplet {
    int32_t attribute, value, negative_value;
    std::array<int32_t, 3> images;  // anchor, positive, negative
  };

  Triplet draw(int64_t epoch, uint32_t triplet) const {
    RandomStream random(config_.seed, kRandomSampler, uint64_t(epoch), triplet);
    const ValueClasses& classes = classes_[random.below(uint32_t(classes_.size()))];
    const uint32_t anchor_place = random.below(uint32_t(classes.anchors.size()));
    const int32_t value = classes.anchors[anchor_place];
    const int32_t* own = classes.images.data() + classes.begin[value];
    const auto own_size = uint32_t(classes.size(value));
    const uint32_t anchor = random.below(own_size);
    uint32_t positive = random.below(own_size - 1);
    positive += positive >= anchor;
    Triplet out{classes.attribute, value, 0, {own[anchor], own[positive], 0}};
    if (config_.negative_by_value) {
      const auto& excluded = classes.excluded[anchor_place];
      uint32_t place = random.below(uint32_t(classes.serving.size() - excluded.size()));
      for (const uint32_t gap : excluded) place += place >= gap;
      out.negative_value = classes.serving[place];
      out.images[2] =
          classes.images[draw_entry(random, classes, value, classes.begin[out.negative_value],
                                    classes.size(out.negative_value))];
    } else {
      // All of the attribute's entries but the anchor value's own, which lie together.
      const int64_t others = int64_t(classes.images.size()) - own_size;
      const int64_t entry = draw_entry(random, classes, value, -1, others);
      out.images[2] = classes.images[entry];
      out.negative_value =
          int32_t(std::upper_bound(classes.begin.begin(), classes.begin.end(), entry) -
                  classes.begin.begin() - 1);
    }
    return out;
  }

  // An entry of classes.images, uniform over those that may be a negative of `value`: `count` from
  // `first` on, or from all but the value's own where first is -1.
  int64_t draw_entry(RandomStream& random, const ValueClasses& classes, int32_t value,
                     int64_t first, int64_t count) const {
    const auto entry = [&](int64_t i) {
      if (first >= 0) return first + i;
      return i < classes.begin[value] ? i : i + classes.size(value);
    };
    if (!config_.exclude_shared) return entry(random.below(uint32_t(count)));
    // Rarely more than one try; where nearly everything is shared, counting is exact and bounded.
    for (int attempt = 0; attempt < 8; ++attempt) {
      const int64_t tried = entry(random.below(uint32_t(count)));
      if (!carries(classes.images[tried], classes.attribute, value)) return tried;
    }
    std::vector<int64_t> allowed;
    for (int64_t i = 0; i < count; ++i) {
      if (!carries(classes.images[entry(i)], classes.attribute, value)) allowed.push_back(entry(i));
    }
    return allowed[random.below(uint32_t(allowed.size()))];
  }

  bool carries(int64_t image, int32_t attribute, int32_t value) const {
    for (int64_t i = labels_->begin[image]; i < labels_->begin[image + 1]; ++i) {
      if (labels_->attribute[i] == attribute && labels_->value[i] == value) return true;
    }
    return false;
  }

  std::shared_ptr<const LabelTable> labels_;
  TripletSamplerConfig config_;
  std::vector<ValueClasses> classes_;
};

class ImageSource final : public BatchSource {
 public:
  ImageSource(int64_t images, const ImageSamplerConfig& config) : images_(images), config_(config) {
    const char* name = "image sampler";
    check_batch(name, config.batch, config.rank, config.world_size);
    TORCH_CHECK_VALUE(images >= 1 && images <= std::numeric_limits<uint32_t>::max(), name,
                      ": images must be at least one and fit in 32 bits, got ", images);
    TORCH_CHECK_VALUE(!config.drop_last || images >= config.batch, name, ": batch must be at most ",
                      images, ", the number of images, where drop_last is set, got ", config.batch);
  }

  int64_t steps_per_epoch() const override {
    return config_.drop_last ? images_ / config_.batch
                             : (images_ + config_.batch - 1) / config_.batch;
  }

  BatchPlan plan(int64_t step) const override {
    TORCH_CHECK_VALUE(step >= 0, "image sampler: step must not be negative, got ", step);
    const int64_t steps = steps_per_epoch();
    BatchPlan plan;
    plan.epoch = step / steps;
    const int64_t start = step % steps * config_.batch;
    const int64_t count = std::min(config_.batch, images_ - start);
    const auto [first, last] = share(count, config_.rank, config_.world_size);
    plan.positions.resize(last - first);
    std::iota(plan.positions.begin(), plan.positions.end(), start + first);
    plan.images = plan.positions;
    if (config_.shuffle) {
      const auto order = permutation(plan.epoch);
      for (int64_t& image : plan.images) image = (*order)[image];
    }
    return plan;
  }

 private:
  using Permutation = std::shared_ptr<const std::vector<uint32_t>>;

  // A pure function of the epoch. Two epochs are kept, since threads that prefetch cross the border
  // of an epoch at different times.
  Permutation permutation(int64_t epoch) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& [kept_epoch, kept] = kept_[epoch % 2];
    if (kept == nullptr || kept_epoch != epoch) {
      std::vector<uint32_t> order(images_);
      std::iota(order.begin(), order.end(), 0u);
      // b lies outside the triplets' range, so the two samplers never share a stream.
      RandomStream random(config_.seed, kRandomSampler, uint64_t(epoch),
                          std::numeric_limits<uint32_t>::max());
      for (size_t i = order.size() - 1; i > 0; --i) {
        std::swap(order[i], order[random.below(uint32_t(i + 1))]);
      }
      kept_epoch = epoch;
      kept = std::make_shared<const std::vector<uint32_t>>(std::move(order));
    }
    return kept;
  }

  int64_t images_;
  ImageSamplerConfig config_;
  mutable std::mutex mutex_;
  mutable std::array<std::pair<int64_t, Permutation>, 2> kept_;
};

}  // namespace

std::unique_ptr<BatchSource> make_triplet_source(std::shared_ptr<const LabelTable> labels,
                                                 const TripletSamplerConfig& config) {
  TORCH_CHECK_VALUE(labels != nullptr, "triplet sampler: labels must be given, got none");
  return std::make_unique<TripletSource>(std::move(labels), config);
}

std::unique_ptr<BatchSource> make_image_source(int64_t images, const ImageSamplerConfig& config) {
  return std::make_unique<ImageSource>(images, config);
}

}  // namespace placket
