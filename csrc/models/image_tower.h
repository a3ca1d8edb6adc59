#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "models/tensor_spec.h"
#include "models/trunk.h"

namespace placket {

// An image tower turns images [B, 3, H, W] into an embedding of each, [B, D], and one of each of
// the P positions of its map. It is described by one string, "name[,key=value...]":
//
//   clip_vit_{b_32,b_16,l_14,h_14}   CLIP's vision transformers; ",image=336" is L/14@336px. H/14
//   is clip_vit                         OpenCLIP's. All know width=768, depth=12, heads (width /
//   64),
//                                    mlp (4 width), patch=32, image=224: side the positions are
//                                    made for, embedding_dim=512, activation=quick_gelu | gelu
//   clip_rn{50,101,50x4,50x16,50x64} CLIP's ResNets: three convolutions as stem, averages instead
//   of clip_resnet,layers=3/4/6/3       strides, attention pooling. All know width=64, heads (width
//   /
//                                    2), image=224, embedding_dim=1024
//   a trunk's (trunk.h)              the mean over its map and a projection, embedding_dim=512
//
// The keys' defaults are those of the last name, and the published ones of the names before it. The
// positions are resampled (bicubic, antialiased) for images of another size, also not square.
// An unknown name or key is an error that lists the known ones.
TensorSpecs image_tower_spec(const std::string& tower);

// D.
int64_t image_tower_embedding_dim(const std::string& tower);

// Side of the images it was made for; 224 of a trunk.
int64_t image_tower_size(const std::string& tower);

Normalization image_tower_normalization(const std::string& tower);

struct ImageTowerOutput {
  at::Tensor embedding;  // [B, D], not normalised
  // [B, 1 + P, D]: the embedding, then the positions, row by row, as if each alone were pooled: of
  // a ViT the other tokens, normed and projected; of a ResNet what attention to that position alone
  // would give (as in MaskCLIP, Zhou et al., ECCV 2022); of a trunk its projection. Undefined
  // unless asked for.
  at::Tensor tokens;
};

// Registered as placket::image_tower(Tensor images, Tensor(a!)[] weights, str tower, bool tokens,
// bool training, bool batch_statistics, int groups) -> (Tensor embedding, Tensor tokens), a
// composite operator: it decomposes when traced. There what is undefined is an empty tensor.
ImageTowerOutput image_tower(
    const at::Tensor& images,  // [B, 3, H, W]; sides are multiples of a ViT's patch, at least 32
                               // for a ResNet
    at::TensorList weights,  // in the order of image_tower_spec; running statistics change in place
    const std::string& tower, bool tokens, const Mode& mode);

}  // namespace placket
