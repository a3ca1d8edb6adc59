#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "data/loader.h"
#include "train/system.h"

namespace placket {

// Rows of a split's list: an image under an attribute with the value it has there.
struct EvaluationList {
  std::vector<int64_t> images;  // index into the ImageList
  std::vector<int64_t> attributes;
  std::vector<int64_t> values;
};

struct EvaluationSet {
  std::shared_ptr<const ImageList> images;
  EvaluationList queries, candidates;
  int64_t attributes = 0;  // A
};

struct EvaluationScores {
  std::vector<double> per_attribute;  // [A] mean average precision in [0, 1]; NaN without queries
  double overall = 0;                 // mean over all queries
};

struct EncodeOptions {
  Preprocess preprocess;
  std::string views = "crop";  // see LoaderConfig
  int64_t batch = 64;
  int64_t threads = 2;
  bool bfloat16 = false;
};

// Embeddings [rows, D] float32 on the CPU of each row (images[i], attributes[i]). Every image is
// read once and passes the trunk once, whatever the number of its rows. `poll` is called between
// batches.
at::Tensor encode_rows(System& system, const std::shared_ptr<const ImageList>& images,
                       const std::vector<int64_t>& rows, const std::vector<int64_t>& attributes,
                       const EncodeOptions& options, const std::function<void()>& poll);

// Protocol asfr-map-all/v1 (average_precision.h): each attribute within its own candidates.
EvaluationScores evaluate(System& system, const EvaluationSet& set, const EncodeOptions& options,
                          const std::function<void()>& poll);

}  // namespace placket
