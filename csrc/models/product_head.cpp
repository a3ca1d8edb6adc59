#include "models/product_head.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>

#include "models/description.h"
#include "models/layers.h"

// With C3, C4, C5 the trunk's last three maps, up and down resampling to the size of the other,
// node(x, y) = ReLU(BN(conv1x1(conv3x3 depthwise(a x + b y)))), a = relu(w0) / (relu(w0) + relu(w1)
// + 1e-4) and so on (BiFPN's fast normalised fusion: Tan et al., CVPR 2020), L = conv1x1 of C:
//
//   P4 = node(L4, up L5), P3 = node(L3, up P4)                      top down
//   N4 = node(P4, down P3), N5 = node(L5, down N4)                  bottom up
//   X  = ReLU(BN(conv1x1 [down P3 ; N4 ; N5]))
//
// at the size of C4. Each branch has a residual bottleneck block of its own (MGN, ACM MM 2018, has
// copies of the last stage), then
//
//   global   W max_P(block X)
//   part n   W max_P(block X), W mean over each of n stripes
//   local    W max_P(omni(block X)): depthwise convolutions of four depths added up under one gate
//            (OSNet, ICCV 2019), where training erases the most active rows (after "Top-DB-Net",
//            ICPR 2020)
//
// with a W of its own for each feature; necks = BatchNorm(features) without a shift.
namespace placket {

using at::Tensor;

namespace {

constexpr int64_t kLevels = 3;
constexpr int64_t kStreams = 4;
constexpr int64_t kGateReduction = 16;

// Maps in a step of the pyramid, of which one is twice as large or as large as the other.
Tensor enlarged(const Tensor& map, const Tensor& like) {
  return at::upsample_nearest2d_symint(map, {like.sym_size(2), like.sym_size(3)});
}

Tensor halved(const Tensor& map) { return at::max_pool2d(map, {3, 3}, {2, 2}, {1, 1}, {1, 1}); }

// A convolution without a bias and the BatchNorm behind it.
void add_normed(TensorSpecs& specs, const std::string& name, int64_t out, int64_t in,
                int64_t kernel, int64_t groups = 1) {
  add_conv(specs, name + ".conv", out, in, kernel, {.groups = groups});
  add_batch_norm(specs, name + ".norm", out);
}

Tensor normed(const Tensor& x, Weights& w, const Mode& mode, Activation activation,
              const Conv& conv = {}, const Tensor& residual = {}) {
  return conv_norm(x, w.next_normed_conv(), conv, mode, activation, {}, residual);
}

class ProductHead {
 public:
  explicit ProductHead(Description& settings)
      : map_dim_(settings.integer("map_dim", 1024, 4)),
        fusion_dim_(settings.integer("fusion_dim", 256, 0)),
        embedding_dim_(settings.integer("embedding_dim", 256, 1)),
        stripes_(settings.integers("stripes", 0)),
        local_(settings.boolean("local", true)),
        drop_(settings.number("drop", 1.0 / 3, 0, 0.99)),
        attributes_(settings.integer("attributes", 0, 0)) {
    if (stripes_ == std::vector<int64_t>{0}) stripes_.clear();
    if (std::count(stripes_.begin(), stripes_.end(), 0) > 0) {
      settings.fail("stripes", "be 0 alone or numbers from 1", "0 among others");
    }
    features_.push_back({"global", true});
    for (const int64_t n : stripes_) {
      features_.push_back({"part", true});
      features_.insert(features_.end(), size_t(n), {"part", false});
    }
    if (local_) features_.push_back({"local", true});
    tensors_ = spec(std::vector<MapLevel>(size_t(levels()), {1, 1})).size();
  }

  const std::vector<ProductFeature>& features() const { return features_; }
  int64_t levels() const { return fusion_dim_ > 0 ? kLevels : 1; }
  size_t tensors() const { return tensors_; }  // of the spec, whatever the levels

  TensorSpecs spec(const std::vector<MapLevel>& levels) const {
    TensorSpecs specs;
    if (fusion_dim_ > 0) {
      for (int64_t i = 0; i < kLevels; ++i) {
        add_normed(specs, "fusion.lateral." + std::to_string(i), fusion_dim_,
                   levels[size_t(i)].channels, 1);
      }
      for (const char* node : {"down.1", "down.0", "up.1", "up.2"}) {
        add_node(specs, std::string("fusion.") + node);
      }
      add_normed(specs, "fusion.join", map_dim_, 3 * fusion_dim_, 1);
    } else {
      add_normed(specs, "project", map_dim_, levels.back().channels, 1);
    }
    add_block(specs, "whole");  // Python knows "global" as a word of its own
    for (const int64_t n : stripes_) add_block(specs, "part" + std::to_string(n));
    if (local_) add_local(specs);
    const auto count = int64_t(features_.size());
    specs.push_back({"reduce.weight",
                     {count, map_dim_, embedding_dim_},
                     Initializer::kLinear,
                     double(map_dim_)});
    const int64_t width = count * embedding_dim_;
    specs.push_back({"neck.weight", {width}, Initializer::kOnes});
    specs.push_back({"neck.running_mean", {width}, Initializer::kZeros, 1.0, true});
    specs.push_back({"neck.running_var", {width}, Initializer::kOnes, 1.0, true});
    if (attributes_ > 0) add_linear(specs, "attributes", attributes_, width);
    return specs;
  }

  ProductOutput embed(at::TensorList maps, const std::vector<MapLevel>& levels, Weights& w,
                      const Mode& mode) const {
    const Tensor x = fusion_dim_ > 0 ? fused(maps, levels, w, mode)
                                     : normed(maps.back(), w, mode, Activation::kRelu);
    std::vector<Tensor> pooled;  // [B, C] each
    pooled.push_back(largest_of(block(x, w, mode)));
    for (const int64_t n : stripes_) {
      const Tensor y = block(x, w, mode);
      pooled.push_back(largest_of(y));
      const std::vector<Tensor> means =
          at::adaptive_avg_pool2d(y, {n, 1}).squeeze(3).unbind(2);  // from the top
      pooled.insert(pooled.end(), means.begin(), means.end());
    }
    if (local_) pooled.push_back(largest_of(details(block(x, w, mode), w, mode)));

    ProductOutput out;
    out.features = at::stack(pooled).bmm(w.next()).transpose(0, 1);  // [B, G, E]
    NormedConv neck;
    neck.norm.weight = w.next();
    neck.norm.bias = at::zeros_like(neck.norm.weight);
    neck.running_mean = w.next();
    neck.running_var = w.next();
    const Tensor rows = batch_norm_rows(out.features.flatten(1), neck, mode);
    out.necks = rows.unflatten(1, {int64_t(features_.size()), embedding_dim_});
    out.attributes = attributes_ > 0 ? linear(rows, w.next_affine())
                                     : at::empty_symint({rows.sym_size(0), 0}, rows.options());
    return out;
  }

 private:
  void add_node(TensorSpecs& specs, const std::string& name) const {
    specs.push_back({name + ".shares", {2}, Initializer::kOnes});
    add_conv(specs, name + ".depthwise", fusion_dim_, fusion_dim_, 3, {.groups = fusion_dim_});
    add_normed(specs, name, fusion_dim_, fusion_dim_, 1);
  }

  Tensor node(const Tensor& x, const Tensor& y, Weights& w, const Mode& mode) const {
    const Tensor shares = at::relu(w.next());
    const std::vector<Tensor> parts = (shares / (shares.sum() + 1e-4)).unbind(0);
    const Tensor sum = x * parts[0] + y * parts[1];
    const Tensor spread = conv2d(sum, w, {.padding = 1, .groups = fusion_dim_});
    return normed(spread, w, mode, Activation::kRelu);
  }

  Tensor fused(at::TensorList maps, const std::vector<MapLevel>& levels, Weights& w,
               const Mode& mode) const {
    std::vector<Tensor> lateral;
    for (const Tensor& map : maps) lateral.push_back(normed(map, w, mode, Activation::kNone));
    const auto same = [&](size_t i, size_t j) { return levels[i].stride == levels[j].stride; };
    const auto up = [&](const Tensor& map, size_t from, size_t to) {
      return same(from, to) ? map : enlarged(map, lateral[to]);
    };
    const auto down = [&](const Tensor& map, size_t from, size_t to) {
      return same(from, to) ? map : halved(map);
    };
    const Tensor p4 = node(lateral[1], up(lateral[2], 2, 1), w, mode);
    const Tensor p3 = node(lateral[0], up(p4, 1, 0), w, mode);
    const Tensor n4 = node(p4, down(p3, 0, 1), w, mode);
    const Tensor n5 = node(lateral[2], down(n4, 1, 2), w, mode);
    return normed(at::cat({down(p3, 0, 1), n4, up(n5, 2, 1)}, 1), w, mode, Activation::kRelu);
  }

  void add_block(TensorSpecs& specs, const std::string& name) const {
    const int64_t inner = map_dim_ / 4;
    add_normed(specs, name + ".0", inner, map_dim_, 1);
    add_normed(specs, name + ".1", inner, inner, 3);
    add_normed(specs, name + ".2", map_dim_, inner, 1);
  }

  static Tensor block(const Tensor& x, Weights& w, const Mode& mode) {
    Tensor y = normed(x, w, mode, Activation::kRelu);
    y = normed(y, w, mode, Activation::kRelu, {.padding = 1});
    return normed(y, w, mode, Activation::kRelu, {}, x);
  }

  void add_local(TensorSpecs& specs) const {
    add_block(specs, "local");
    const int64_t inner = map_dim_ / 4, gate = std::max<int64_t>(1, inner / kGateReduction);
    add_normed(specs, "local.reduce", inner, map_dim_, 1);
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      for (int64_t depth = 0; depth <= stream; ++depth) {
        const std::string name =
            "local.streams." + std::to_string(stream) + "." + std::to_string(depth);
        add_conv(specs, name + ".pointwise", inner, inner, 1);
        add_normed(specs, name, inner, inner, 3, inner);
      }
    }
    add_linear(specs, "local.gate.fc1", gate, inner);
    add_linear(specs, "local.gate.fc2", inner, gate);
    add_normed(specs, "local.expand", map_dim_, inner, 1);
  }

  Tensor details(const Tensor& x, Weights& w, const Mode& mode) const {
    const Tensor reduced = normed(x, w, mode, Activation::kRelu);
    const int64_t inner = map_dim_ / 4;
    std::vector<Tensor> streams;
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      Tensor y = reduced;
      for (int64_t depth = 0; depth <= stream; ++depth) {
        y = conv2d(y, w);
        y = normed(y, w, mode, Activation::kRelu, {.padding = 1, .groups = inner});
      }
      streams.push_back(y);
    }
    const Affine fc1 = w.next_affine(), fc2 = w.next_affine();
    Tensor sum;
    for (const Tensor& stream : streams) {
      const Tensor gate = linear(at::relu(linear(stream.mean({2, 3}), fc1)), fc2).sigmoid();
      const Tensor open = stream * gate.unsqueeze(2).unsqueeze(3);
      sum = sum.defined() ? sum + open : open;
    }
    const Tensor y = normed(sum, w, mode, Activation::kRelu, {}, x);
    return mode.training && drop_ > 0 ? without_active_rows(y) : y;
  }

  Tensor without_active_rows(const Tensor& map) const {
    const Tensor activity = map.detach().square().mean({1, 3});  // [B, h]
    // Of each row the share of rows that are more active.
    const Tensor ahead = activity.unsqueeze(1).gt(activity.unsqueeze(2)).to(at::kFloat).mean(2);
    const Tensor kept = ahead.ge(drop_).to(map.scalar_type());
    return map * kept.unsqueeze(1).unsqueeze(3);
  }

  static Tensor largest_of(const Tensor& map) { return map.amax({2, 3}); }

  int64_t map_dim_, fusion_dim_, embedding_dim_;
  std::vector<int64_t> stripes_;
  bool local_;
  double drop_;
  int64_t attributes_;
  std::vector<ProductFeature> features_;
  size_t tensors_ = 0;
};

ProductHead make_product_head(const std::string& description) {
  Description settings("product_head", description);
  if (settings.name() != "mmfl") settings.fail("name", "be mmfl", "'" + settings.name() + "'");
  ProductHead head(settings);
  settings.refuse_unknown_keys();
  return head;
}

const ProductHead& find_product_head(const std::string& description) {
  return read_once(description, make_product_head);
}

// The levels of a trunk that a head reads.
std::vector<MapLevel> levels_for(const ProductHead& head, const std::string& trunk) {
  const std::vector<MapLevel> all = trunk_levels(trunk);
  const int64_t count = head.levels();
  TORCH_CHECK_VALUE(int64_t(all.size()) >= count, "product_head: trunk must have ", count,
                    " maps to be fused, got '", trunk, "' with ", all.size(),
                    "; switch fusion off (fusion_dim 0)");
  return {all.end() - count, all.end()};
}

std::tuple<Tensor, Tensor, Tensor> product_head_op(at::TensorList maps, at::TensorList weights,
                                                   std::string_view head, std::string_view trunk,
                                                   bool training, bool batch_statistics,
                                                   int64_t groups) {
  const ProductOutput out = product_head(maps, weights, std::string(head), std::string(trunk),
                                         {training, batch_statistics, groups});
  return {out.features, out.necks, out.attributes};
}

}  // namespace

std::vector<ProductFeature> product_features(const std::string& head) {
  return find_product_head(head).features();
}

int64_t product_head_levels(const std::string& head) { return find_product_head(head).levels(); }

TensorSpecs product_head_spec(const std::string& head, const std::string& trunk) {
  const ProductHead& found = find_product_head(head);
  return found.spec(levels_for(found, trunk));
}

ProductOutput product_head(at::TensorList maps, at::TensorList weights, const std::string& head,
                           const std::string& trunk, const Mode& mode) {
  constexpr const char* kName = "product_head";
  const ProductHead& found = find_product_head(head);
  const std::vector<MapLevel> levels = levels_for(found, trunk);
  TORCH_CHECK_VALUE(maps.size() == levels.size(), kName, ": maps must be the trunk's last ",
                    levels.size(), ", got ", maps.size());
  for (size_t i = 0; i < levels.size(); ++i) {
    TORCH_CHECK_VALUE(maps[i].dim() == 4 && maps[i].sym_size(1) == levels[i].channels, kName,
                      ": map ", i, " must have shape [B, ", levels[i].channels, ", h, w], got ",
                      maps[i].sym_sizes());
  }
  Weights cursor(kName, weights, found.tensors());
  return found.embed(maps, levels, cursor, mode);
}

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "product_head(Tensor[] maps, Tensor(a!)[] weights, str head, str trunk, bool training=False, "
      "bool batch_statistics=False, int groups=1) -> (Tensor features, Tensor necks, Tensor "
      "attributes)",
      product_head_op, {at::Tag::pt2_compliant_tag});
}

}  // namespace placket
