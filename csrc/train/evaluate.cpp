#include "train/evaluate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/interrupt.h"
#include "retrieval/average_precision.h"
#include "train/autocast.h"

namespace placket {

using at::Tensor;

Tensor encode_rows(System& system, const std::shared_ptr<const ImageList>& images,
                   const std::vector<int64_t>& rows, const std::vector<int64_t>& attributes,
                   const EncodeOptions& options, const std::function<void()>& poll) {
  // The images that occur, and of each the rows that want it.
  std::vector<int64_t> used;
  std::vector<std::vector<size_t>> wanted;
  std::vector<int64_t> place(size_t(images->size()), -1);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t image = size_t(rows[i]);
    TORCH_CHECK_INDEX(image < place.size(), "encode: image must be below ", place.size(), ", got ",
                      rows[i]);
    if (place[image] < 0) {
      place[image] = int64_t(wanted.size());
      wanted.emplace_back();
      used.push_back(rows[i]);
    }
    wanted[size_t(place[image])].push_back(i);
  }
  if (wanted.empty()) return at::empty({0, 0}, at::kFloat);

  ImageSamplerConfig order;
  order.batch = options.batch;
  order.shuffle = false;
  order.drop_last = false;
  const std::shared_ptr<const BatchSource> source =
      make_image_source(int64_t(wanted.size()), order);
  LoaderConfig config;
  config.preprocess = options.preprocess;
  config.keep_pixels = system.needs_pixels();
  config.views = options.views;
  config.threads = options.threads;
  config.pin_memory = system.device().is_cuda();
  Loader loader(std::make_shared<ImageList>(images->select(used)), nullptr, source, config);
  const InterruptionScope interruption(poll);
  Tensor out;
  for (int64_t step = 0; step < source->steps_per_epoch(); ++step) {
    if (poll) poll();
    const Batch batch = loader.next();
    size_t most = 0;
    for (const int64_t image : batch.plan.images)
      most = std::max(most, wanted[size_t(image)].size());
    Tensor asked = at::full({batch.images.size(0), int64_t(most)}, -1, at::kLong);
    std::vector<int64_t> targets;
    for (size_t n = 0; n < batch.plan.images.size(); ++n) {
      const std::vector<size_t>& own = wanted[size_t(batch.plan.images[n])];
      for (size_t k = 0; k < own.size(); ++k) {
        asked.mutable_data_ptr<int64_t>()[n * most + k] = attributes[own[k]];
        targets.push_back(int64_t(own[k]));
      }
    }
    const AutocastGuard autocast(system.device().type(), options.bfloat16);
    const Tensor embeddings = system.encode(batch, asked).to(at::kFloat).cpu();
    if (!out.defined()) out = at::empty({int64_t(rows.size()), embeddings.size(1)}, at::kFloat);
    out.index_copy_(0, at::tensor(targets, at::kLong), embeddings);
  }
  return out;
}

namespace {

// The rows of one attribute.
Tensor rows_with(const EvaluationList& list, int64_t attribute) {
  std::vector<int64_t> rows;
  for (size_t i = 0; i < list.attributes.size(); ++i) {
    if (list.attributes[i] == attribute) rows.push_back(int64_t(i));
  }
  return at::tensor(rows, at::kLong);
}

}  // namespace

EvaluationScores evaluate(System& system, const EvaluationSet& set, const EncodeOptions& options,
                          const std::function<void()>& poll) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> images = set.queries.images, attributes = set.queries.attributes;
  images.insert(images.end(), set.candidates.images.begin(), set.candidates.images.end());
  attributes.insert(attributes.end(), set.candidates.attributes.begin(),
                    set.candidates.attributes.end());
  const Tensor all = encode_rows(system, set.images, images, attributes, options, poll);
  const int64_t query_count = int64_t(set.queries.images.size());
  const Tensor queries = all.narrow(0, 0, query_count);
  const Tensor candidates = all.narrow(0, query_count, all.size(0) - query_count);
  const Tensor query_values = at::tensor(set.queries.values, at::kLong);
  const Tensor candidate_values = at::tensor(set.candidates.values, at::kLong);

  EvaluationScores scores;
  double sum = 0;
  for (int64_t attribute = 0; attribute < set.attributes; ++attribute) {
    const Tensor q = rows_with(set.queries, attribute);
    if (q.numel() == 0) {
      scores.per_attribute.push_back(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    const Tensor c = rows_with(set.candidates, attribute);
    const Tensor precision =
        average_precision(queries.index_select(0, q), candidates.index_select(0, c),
                          query_values.index_select(0, q), candidate_values.index_select(0, c));
    sum += precision.sum().item<double>();
    scores.per_attribute.push_back(precision.mean().item<double>());
    if (poll) poll();
  }
  scores.overall = sum / double(query_count);
  return scores;
}

}  // namespace placket
