#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "models/tensor_spec.h"
#include "models/trunk.h"

namespace placket {

// A head turns the map of a trunk into embeddings of attributes. Shapes: B images, K attributes of
// each, A attributes known, C channels of the map, P = h w positions, E embedding. It is described
// by one string, "name[,key=value...]":
//
//   asen             ASEN: attribute_dim=512, embedding_dim=1024, hidden_dim=512; no attribute
//   table asen_v2          its second version: the same settings; embedding_dim is the map's
//   channels asen_plus_plus   either branch of ASEN++: attribute_dim=512, attention_dim=512,
//                    embedding_dim=1024, hidden_dim=512
//   csn, triplet     baselines without attention or attribute table: embedding_dim=1024
//   rpf_region   RPF's region-aware branch: attribute_dim=512, embedding_dim=1024, hidden_dim=512,
//                dropout=0.1, project_background=false, project_per_attribute=false
//   rpf_patch    RPF's patch-aware branch: attribute_dim=512, embedding_dim=1024, hidden_dim=512,
//                heads=12, dropout=0.1; attributes [B, 1] only
//   m3net        M3-Net's attribute and class sub-networks: classes=6/9/8, the number of values of
//                each attribute; attribute_dim=512, embedding_dim=512, class_dim=128,
//                class_query_dim=512, class_output_dim=128, variant=full | attribute | class
//
// The equations are in the file of each. An unknown name or key is an error that lists the known
// ones. Every head knows adapters_from=0 and adapter_rank=64 too: attributes from that one on (0:
// none) have an adapter each, which attends to the map by itself. With t = LayerNorm(features),
// without weights, and for each adapter a query [C], down [adapter_rank, C], up [E, adapter_rank],
//   attention = softmax_P( query . t / sqrt(C) ),
//   embedding = the head's + up relu( down sum_P attention t )
// A trained network learns further attributes by them while nothing of the others moves a bit
// (after Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019).
// A head with a class sub-network knows M classes, the values of attribute 0, then those of
// attribute 1 and so on, and represents an image by a vector of F numbers for each.
struct HeadSizes {
  int64_t channels = 0;    // C
  int64_t attributes = 0;  // A
};

struct HeadOutput {
  at::Tensor embedding;   // [B, K, E], not normalised
  at::Tensor attention;   // [B, K, h, w], sums to 1 over positions; undefined: the head has none
  at::Tensor background;  // [B, K, E] of what the attention leaves out; undefined unless asked for
                          // and the head has one
  // Undefined for a head without a class sub-network:
  at::Tensor class_embedding;  // [B, M, F], not normalised
  at::Tensor class_logits;     // [B, M], of the probability that the image carries the class
};

TensorSpecs head_spec(const std::string& head, const HeadSizes& sizes);

// E.
int64_t head_embedding_dim(const std::string& head);

// Width of the attribute table that it reads, which the branches of a network share; 0: it reads
// none.
int64_t head_table_dim(const std::string& head);

// Whether it attends to positions, as a branch must whose regions another one looks at.
bool head_attends(const std::string& head);

// Whether it can embed what the attention leaves out.
bool head_has_background(const std::string& head);

// Number of values of each attribute, whose sum is M; empty: it has no class sub-network.
std::vector<int64_t> head_classes(const std::string& head);

// Width of the space that class centres are kept in: F, or E without a class sub-network.
int64_t head_centre_dim(const std::string& head);

// Registered as placket::attribute_head(Tensor features, Tensor? table, Tensor attributes,
// Tensor(a!)[] weights, str head, bool background, bool training, bool batch_statistics, int
// groups) -> (Tensor embedding, Tensor attention, Tensor background), a composite operator: it
// decomposes when traced. There what is undefined is an empty tensor. placket::class_head(Tensor
// features, Tensor? table, Tensor attributes, Tensor(a!)[] weights, str head, bool training, bool
// batch_statistics, int groups) -> (Tensor embedding, Tensor attention, Tensor class_embedding,
// Tensor class_logits) gives what a head with a class sub-network has.
HeadOutput attribute_head(
    const at::Tensor& features,    // [B, C, h, w]
    const at::Tensor& table,       // [A, table_dim]; undefined where the head reads none
    const at::Tensor& attributes,  // [B, K] int64, or [K]: the same attributes for every image
    at::TensorList weights,        // in the order of head_spec; running statistics change in place
    const std::string& head, bool background, const Mode& mode);

}  // namespace placket
