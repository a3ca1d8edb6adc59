#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "models/tensor_spec.h"

namespace placket {

// A trunk turns images [B, 3, H, W] into a feature map [B, C, h, w]. It is described by one string,
// "name[,key=value...]":
//
//   resnet18 | resnet34 | resnet50     stage=2 | 3 | 4: cut after layer2 (stride 8), layer3 (stride
//                                      16, the default) or layer4 (stride 32, or 16 with
//                                      last_stride=1); width=0.5 scales the channels; ibn=true
//                                      normalises half of each first convolution's channels in
//                                      layer1 to layer3 by the instance (IBN-a: Pan et al., ECCV
//                                      2018)
//   squeezenet1_0                      stage=4 | 8 | 16: stride of the map after which it is cut
//   efficientnet_lite0                 stage=4 | 8 | 16 | 32 | head (the 1,280-channel convolution)
//   vit_{tiny,small,base,large}_patchP_R, or
//   vit,width=..,depth=..,heads=..,patch=..,image=..,mlp=..
//                                      tokens without the class token as a map; heads are width /
//                                      64 unless given; dropout=0.1, norm=true adds the LayerNorm
//                                      after the last block
//   module,channels=..                 computed by the caller: no weights, trunk_features refuses
//
// An unknown name or key is an error that lists the known ones.
TensorSpecs trunk_spec(const std::string& trunk);

// Whether a description of this name is one of a trunk that is computed here, and those names.
bool is_trunk(const std::string& name);
std::vector<std::string> trunk_names();

// Channels C of the map.
int64_t trunk_channels(const std::string& trunk);

// The maps at the ends of a trunk's stages, from the input on; the last is the trunk's own map. A
// trunk without stages has one level, of an unknown stride, 0.
struct MapLevel {
  int64_t channels;
  int64_t stride;
};
std::vector<MapLevel> trunk_levels(const std::string& trunk);

// What the weights' authors fed it: mean and standard deviation of RGB in [0, 1].
struct Normalization {
  double mean[3];
  double std[3];
};
Normalization trunk_normalization(const std::string& trunk);

// How a forward pass treats what differs between training and use.
struct Mode {
  bool training = false;  // dropout on
  bool batch_statistics =
      false;  // BatchNorm uses (and tracks) statistics of the batch; otherwise the running ones
  int64_t groups = 1;  // BatchNorm statistics of this many equal parts of the batch are kept apart
};

// Throws ValueError, with `op` before it, unless images are [B, 3, H, W] and cut into mode.groups.
void check_images(const char* op, const at::Tensor& images, const Mode& mode);

// Registered as placket::trunk_features(Tensor images, Tensor(a!)[] weights, str trunk, bool
// training, bool batch_statistics, int groups) -> Tensor, a composite operator: it decomposes when
// traced.
at::Tensor trunk_features(
    const at::Tensor& images,  // [B, 3, H, W]
    at::TensorList weights,    // in the order of trunk_spec; running statistics change in place
    const std::string& trunk, const Mode& mode);

// The maps of a trunk's last `count` levels in their order. Registered as placket::trunk_maps in
// the same way, with `int count` behind the trunk, -> Tensor[].
std::vector<at::Tensor> trunk_maps(const at::Tensor& images, at::TensorList weights,
                                   const std::string& trunk, int64_t count, const Mode& mode);

}  // namespace placket
