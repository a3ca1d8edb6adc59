#include "data/sampler.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <numeric>
#include <set>
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

ValueClasses group_by_value(const LabelTable& labels, int32_t attribute, bool exclude_shared) {
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
  return classes;
}

// Fills anchors and excluded; `least` images make a value an anchor's.
void find_anchors(ValueClasses& classes, int64_t least) {
  for (const int32_t v : classes.serving) {
    if (classes.size(v) < least) continue;
    std::vector<uint32_t> excluded;
    for (uint32_t place = 0; place < classes.serving.size(); ++place) {
      const int32_t w = classes.serving[place];
      if (w == v || classes.shared(v, w) == classes.size(w)) excluded.push_back(place);
    }
    if (excluded.size() == classes.serving.size()) continue;
    classes.anchors.push_back(v);
    classes.excluded.push_back(std::move(excluded));
  }
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
      ValueClasses classes = group_by_value(*labels_, int32_t(a), config.exclude_shared);
      find_anchors(classes, config.single_views ? 1 : 2);
      if (classes.anchors.empty()) {
        left_out << (left_out.tellp() > 0 ? ", " : "") << "attribute " << a << " has images under "
                 << classes.serving.size() << " of " << labels_->values[a] << " values";
      } else {
        classes_.push_back(std::move(classes));
      }
    }
    TORCH_CHECK_VALUE(!classes_.empty(), name, ": labels must have an attribute with ",
                      config.single_views ? "an image" : "two images",
                      " under one value and an image under another",
                      config.exclude_shared ? " that does not share it" : "", ", got ",
                      labels_->images(), " images: ", left_out.str());
  }

  int64_t steps_per_epoch() const override { return config_.triplets / config_.batch; }
  bool serves(int64_t image, int64_t attribute, int64_t value) const override {
    return labels_->carries(image, attribute, value);
  }

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
    uint32_t positive = anchor;
    if (own_size > 1) {
      positive = random.below(own_size - 1);
      positive += positive >= anchor;
    }
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

// `count` different numbers below `size`, uniform and in uniform order: the first steps of a
// shuffle whose untouched places are not stored.
std::vector<uint32_t> draw_without_replacement(RandomStream& random, uint32_t size,
                                               uint32_t count) {
  std::unordered_map<uint32_t, uint32_t> moved;
  const auto at = [&](uint32_t place) {
    const auto found = moved.find(place);
    return found == moved.end() ? place : found->second;
  };
  std::vector<uint32_t> drawn;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t chosen = i + random.below(size - i);
    drawn.push_back(at(chosen));
    moved[chosen] = at(i);
  }
  return drawn;
}

class ClassSource final : public BatchSource {
 public:
  ClassSource(std::shared_ptr<const LabelTable> table, const ClassSamplerConfig& config)
      : labels_(std::move(table)), config_(config) {
    const char* name = "class sampler";
    const LabelTable& labels = *labels_;
    TORCH_CHECK_VALUE(config.classes >= 1 && config.images_of_class >= 1, name,
                      ": classes and images_of_class must be positive, got ", config.classes,
                      " and ", config.images_of_class);
    TORCH_CHECK_VALUE(config.least_images >= 1, name, ": least_images must be positive, got ",
                      config.least_images);
    TORCH_CHECK_VALUE(config.steps >= 0, name, ": steps must not be negative, got ", config.steps);
    check_batch(name, config.classes, config.rank, config.world_size);
    check_labels(name, labels);
    const auto attributes = int64_t(labels.values.size());
    TORCH_CHECK_VALUE(config.attribute >= -1 && config.attribute < attributes, name,
                      ": attribute must be -1 or in [0, ", attributes, "), got ", config.attribute);
    TORCH_CHECK_VALUE(labels.images() <= std::numeric_limits<int32_t>::max(), name,
                      ": images must fit in 31 bits, got ", labels.images());
    TORCH_CHECK_VALUE(config.balance >= -1 && config.balance < attributes &&
                          (config.balance < 0 || config.balance != config.attribute),
                      name, ": balance must be -1 or in [0, ", attributes,
                      ") and another attribute than the classes', got ", config.balance);
    const std::vector<int32_t> sharing = sharing_values(labels, config.balance);
    const int64_t kinds =
        std::max<int64_t>(std::set<int32_t>(sharing.begin(), sharing.end()).size(), 1);
    TORCH_CHECK_VALUE(config.balance < 0 || config.images_of_class % kinds == 0, name,
                      ": images_of_class must be a multiple of the ", kinds,
                      " values of attribute ", config.balance, " that share them, got ",
                      config.images_of_class);
    std::ostringstream left_out;
    for (int64_t a = 0; a < attributes; ++a) {
      if (a == config.balance || (config.attribute >= 0 && a != config.attribute)) continue;
      Classes classes{group_by_value(labels, int32_t(a), /*exclude_shared=*/false), {}, {}};
      for (const int32_t v : classes.images.serving) {
        if (classes.images.size(v) < config.least_images) continue;
        classes.values.push_back(v);
        classes.parts.push_back(part_class(classes.images, v, sharing));
      }
      if (int64_t(classes.values.size()) < config.classes) {
        left_out << (left_out.tellp() > 0 ? ", " : "") << "attribute " << a << " with "
                 << classes.values.size();
      } else {
        attributes_.push_back(std::move(classes));
      }
    }
    TORCH_CHECK_VALUE(!attributes_.empty(), name, ": labels must have an attribute with ",
                      config.classes, " values of ", config.least_images, " images or more, got ",
                      left_out.str());
    const int64_t rows = config.classes * config.images_of_class;
    steps_ = config.steps > 0 ? config.steps : std::max<int64_t>(labels.images() / rows, 1);
    TORCH_CHECK_VALUE(steps_ <= std::numeric_limits<uint32_t>::max() / (rows + 1), name,
                      ": rows of an epoch must fit in 32 bits, got ", steps_, " steps of ", rows);
  }

  int64_t steps_per_epoch() const override { return steps_; }
  bool serves(int64_t image, int64_t attribute, int64_t value) const override {
    return labels_->carries(image, attribute, value);
  }

  BatchPlan plan(int64_t step) const override {
    TORCH_CHECK_VALUE(step >= 0, "class sampler: step must not be negative, got ", step);
    BatchPlan plan;
    plan.epoch = step / steps_;
    const int64_t place = step % steps_, images_of_class = config_.images_of_class;
    // Streams of the steps lie behind those of the epoch's rows.
    const int64_t rows = config_.classes * images_of_class;
    RandomStream random(config_.seed, kRandomSampler, uint64_t(plan.epoch),
                        uint32_t(steps_ * rows + place));
    const Classes& drawn = attributes_[random.below(uint32_t(attributes_.size()))];
    const auto values =
        draw_without_replacement(random, uint32_t(drawn.values.size()), uint32_t(config_.classes));
    const auto [first, last] = share(config_.classes, config_.rank, config_.world_size);
    for (int64_t c = first; c < last; ++c) {
      const int32_t value = drawn.values[values[c]];
      const int64_t row = (place * config_.classes + c) * images_of_class;
      RandomStream own(config_.seed, kRandomSampler, uint64_t(plan.epoch), uint32_t(row));
      const std::vector<int64_t>& parts = drawn.parts[values[c]];
      const auto kinds = int64_t(parts.size()) - 1;
      for (int64_t part = 0; part < kinds; ++part) {
        const auto size = uint32_t(parts[part + 1] - parts[part]);
        const auto [begin, end] = share(images_of_class, part, kinds);
        std::vector<uint32_t> order;
        for (int64_t k = 0; k < end - begin; ++k) {
          if (k % size == 0) {
            const auto wanted = uint32_t(std::min<int64_t>(size, end - begin - k));
            order = draw_without_replacement(own, size, wanted);
          }
          plan.positions.push_back(row + begin + k);
          plan.images.push_back(drawn.images.images[parts[part] + order[k % size]]);
          plan.attributes.push_back(drawn.images.attribute);
          plan.values.push_back(value);
        }
      }
    }
    return plan;
  }

 private:
  struct Classes {
    ValueClasses images;
    std::vector<int32_t> values;  // that can be drawn
    // [values] Where in `images` those of each sharing value begin, and where the last ones end.
    std::vector<std::vector<int64_t>> parts;
  };

  // [images] The value of `balance` by which each image shares in its class; all the same without.
  static std::vector<int32_t> sharing_values(const LabelTable& labels, int64_t balance) {
    std::vector<int32_t> sharing(labels.images(), -1);
    for (int64_t image = 0; image < labels.images(); ++image) {
      for (int64_t i = labels.begin[image + 1] - 1; i >= labels.begin[image]; --i) {
        if (labels.attribute[i] == balance) sharing[image] = labels.value[i];
      }
    }
    return sharing;
  }

  // Orders the images of a class by the values they share by; returns where each begins, and the
  // end.
  static std::vector<int64_t> part_class(ValueClasses& classes, int32_t value,
                                         const std::vector<int32_t>& sharing) {
    const auto images = classes.images.begin();
    const int64_t first = classes.begin[value], last = classes.begin[value + 1];
    std::stable_sort(images + first, images + last,
                     [&](int32_t a, int32_t b) { return sharing[a] < sharing[b]; });
    std::vector<int64_t> parts{first};
    for (int64_t i = first + 1; i < last; ++i) {
      if (sharing[images[i]] != sharing[images[i - 1]]) parts.push_back(i);
    }
    parts.push_back(last);
    return parts;
  }

  std::shared_ptr<const LabelTable> labels_;
  ClassSamplerConfig config_;
  std::vector<Classes> attributes_;  // that can be drawn
  int64_t steps_ = 0;
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

class CopiedSource final : public BatchSource {
 public:
  CopiedSource(std::shared_ptr<const BatchSource> source, int64_t copies)
      : source_(std::move(source)), copies_(copies) {}

  int64_t steps_per_epoch() const override { return source_->steps_per_epoch(); }
  bool serves(int64_t image, int64_t attribute, int64_t value) const override {
    return source_->serves(image, attribute, value);
  }

  BatchPlan plan(int64_t step) const override {
    BatchPlan plan = source_->plan(step);
    for (auto* column : {&plan.positions, &plan.images, &plan.attributes, &plan.values}) {
      std::vector<int64_t> copied(column->size() * size_t(copies_));
      for (size_t i = 0; i < copied.size(); ++i) copied[i] = (*column)[i / size_t(copies_)];
      *column = std::move(copied);
    }
    for (size_t i = 0; i < plan.positions.size(); ++i) {
      plan.positions[i] = plan.positions[i] * copies_ + int64_t(i) % copies_;
      TORCH_CHECK_VALUE(plan.positions[i] <= std::numeric_limits<uint32_t>::max(),
                        "sampler: rows of an epoch must fit in 32 bits, got ", copies_,
                        " copies of ", plan.positions[i] / copies_, " or more");
    }
    return plan;
  }

 private:
  std::shared_ptr<const BatchSource> source_;
  int64_t copies_;
};

}  // namespace

std::unique_ptr<BatchSource> make_triplet_source(std::shared_ptr<const LabelTable> labels,
                                                 const TripletSamplerConfig& config) {
  TORCH_CHECK_VALUE(labels != nullptr, "triplet sampler: labels must be given, got none");
  return std::make_unique<TripletSource>(std::move(labels), config);
}

std::unique_ptr<BatchSource> make_class_source(std::shared_ptr<const LabelTable> labels,
                                               const ClassSamplerConfig& config) {
  TORCH_CHECK_VALUE(labels != nullptr, "class sampler: labels must be given, got none");
  return std::make_unique<ClassSource>(std::move(labels), config);
}

std::unique_ptr<BatchSource> make_image_source(int64_t images, const ImageSamplerConfig& config) {
  return std::make_unique<ImageSource>(images, config);
}

std::shared_ptr<BatchSource> make_copied_source(std::shared_ptr<BatchSource> source,
                                                int64_t copies) {
  TORCH_CHECK_VALUE(copies >= 1, "sampler: copies must be at least 1, got ", copies);
  if (copies == 1) return source;
  return std::make_shared<CopiedSource>(std::move(source), copies);
}

}  // namespace placket
