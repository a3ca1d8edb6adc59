#include "models/image_tower.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <string_view>

#include "models/image_tower_model.h"

namespace placket {

using at::Tensor;

namespace {

// embedding = W mean_P(map), tokens = W map_p; the names are open_clip's.
class TrunkTower : public ImageTowerModel {
 public:
  explicit TrunkTower(Description& settings)
      : embedding_dim_(settings.integer("embedding_dim", 512, 1)),
        trunk_(settings.rest()),
        tensors_(trunk_spec(trunk_).size()) {}

  int64_t embedding_dim() const override { return embedding_dim_; }
  int64_t image_size() const override { return 224; }
  Normalization normalization() const override { return trunk_normalization(trunk_); }

  TensorSpecs spec() const override {
    TensorSpecs specs;
    add_specs(specs, "trunk.", trunk_spec(trunk_));
    const int64_t channels = trunk_channels(trunk_);
    specs.push_back(
        {"head.proj.weight", {embedding_dim_, channels}, Initializer::kLinear, double(channels)});
    return specs;
  }

  ImageTowerOutput embed(const Tensor& images, Weights& weights, bool tokens,
                         const Mode& mode) const override {
    const Tensor map = trunk_features(images, weights.next(tensors_), trunk_, mode);
    const Tensor& projection = weights.next();
    ImageTowerOutput out;
    out.embedding = at::linear(map.mean({2, 3}), projection);
    if (tokens) {
      const Tensor positions = at::linear(map_to_tokens(map), projection);
      out.tokens = at::cat({out.embedding.unsqueeze(1), positions}, 1);
    }
    return out;
  }

 private:
  int64_t embedding_dim_;
  std::string trunk_;
  size_t tensors_;  // of the trunk
};

std::unique_ptr<ImageTowerModel> make_trunk_tower(Description& settings) {
  return std::make_unique<TrunkTower>(settings);
}

struct ImageTower {
  std::unique_ptr<const ImageTowerModel> model;
  size_t tensors;  // in its spec
};

ImageTower make_image_tower(const std::string& description) {
  Description settings("image_tower", description);
  const std::string& name = settings.name();
  std::unique_ptr<ImageTowerModel> (*make)(Description&) = nullptr;
  if (name.starts_with("clip_vit")) make = make_clip_vit;
  if (name.starts_with("clip_r")) make = make_clip_resnet;
  if (is_trunk(name)) make = make_trunk_tower;
  if (make == nullptr) {
    settings.fail("name", "be clip_vit*, clip_rn*, clip_resnet or one of " + join(trunk_names()),
                  "'" + name + "'");
  }
  std::unique_ptr<ImageTowerModel> model = make(settings);
  settings.refuse_unknown_keys();
  const size_t tensors = model->spec().size();
  return {std::move(model), tensors};
}

const ImageTower& find_image_tower(const std::string& description) {
  return read_once(description, make_image_tower);
}

std::tuple<Tensor, Tensor> image_tower_op(const Tensor& images, at::TensorList weights,
                                          std::string_view tower, bool tokens, bool training,
                                          bool batch_statistics, int64_t groups) {
  const ImageTowerOutput out = image_tower(images, weights, std::string(tower), tokens,
                                           {training, batch_statistics, groups});
  return {out.embedding,
          out.tokens.defined() ? out.tokens : at::empty({0}, out.embedding.options())};
}

}  // namespace

TensorSpecs image_tower_spec(const std::string& tower) {
  return find_image_tower(tower).model->spec();
}

int64_t image_tower_embedding_dim(const std::string& tower) {
  return find_image_tower(tower).model->embedding_dim();
}

int64_t image_tower_size(const std::string& tower) {
  return find_image_tower(tower).model->image_size();
}

Normalization image_tower_normalization(const std::string& tower) {
  return find_image_tower(tower).model->normalization();
}

ImageTowerOutput image_tower(const Tensor& images, at::TensorList weights, const std::string& tower,
                             bool tokens, const Mode& mode) {
  constexpr const char* kName = "image_tower";
  const ImageTower& found = find_image_tower(tower);
  check_images(kName, images, mode);
  Weights cursor(kName, weights, found.tensors);
  return found.model->embed(images.contiguous(at::MemoryFormat::ChannelsLast), cursor, tokens,
                            mode);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "image_tower(Tensor images, Tensor(a!)[] weights, str tower, bool tokens=False, "
      "bool training=False, bool batch_statistics=False, int groups=1) -> (Tensor embedding, "
      "Tensor tokens)",
      image_tower_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
