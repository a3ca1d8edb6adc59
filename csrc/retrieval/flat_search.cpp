#include "retrieval/flat_search.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <c10/core/DeviceGuard.h>
#include <omp.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/checks.h"
#include "base/parallel.h"
#include "kernels/panel_scores.h"
#include "ops/autocast.h"
#include "retrieval/ranking.h"
#include "retrieval/row_scorer.h"
#include "retrieval/screen.h"
#include "retrieval/top_k.h"

namespace placket {

using at::Tensor;
using at::TensorList;
using Keep = std::optional<Tensor>;
using Weights = at::ArrayRef<double>;

Hits flat_search(TensorList queries, TensorList database, Weights weights, const Keep& keep,
                 int64_t k) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::flat_search", "")
                             .typed<decltype(flat_search)>();
  return op.call(queries, database, weights, keep, k);
}

Hits flat_search_compressed(TensorList queries, TensorList database, TensorList codes,
                            TensorList bounds, Weights weights, const Keep& keep, int64_t k) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::flat_search_compressed", "")
                             .typed<decltype(flat_search_compressed)>();
  return op.call(queries, database, codes, bounds, weights, keep, k);
}

namespace {

constexpr const char* kName = "flat_search";
constexpr const char* kCompressedName = "flat_search_compressed";
constexpr const char* kNan =
    "flat_search: scores must be numbers, got NaN; queries or database hold NaN or overflow "
    "float32";

void check_length(const char* name, const char* list, size_t length, size_t spaces) {
  TORCH_CHECK_VALUE(length == spaces, name, ": ", list, " must have ", spaces,
                    " entries like queries, got ", length);
}

void check(const char* name, TensorList queries, TensorList database, Weights weights,
           const Keep& keep, int64_t k) {
  TORCH_CHECK_VALUE(!queries.empty(), name, ": queries must have at least one space, got none");
  check_length(name, "database", database.size(), queries.size());
  check_length(name, "weights", weights.size(), queries.size());
  check_shape(name, "queries[0]", queries[0], {-1, -1}, "[Q, D]");
  check_shape(name, "database[0]", database[0], {-1, -1}, "[N, D]");
  const int64_t count = queries[0].size(0), length = database[0].size(0);
  for (size_t s = 0; s < queries.size(); ++s) {
    const std::string query = c10::str("queries[", s, "]"), rows = c10::str("database[", s, "]");
    check_shape(name, query.c_str(), queries[s], {count, -1}, "[Q, D] with Q of queries[0]");
    check_shape(name, rows.c_str(), database[s], {length, queries[s].size(1)},
                "[N, D] with N of database[0] and D of its queries");
    check_dtype(name, query.c_str(), queries[s], at::kFloat);
    check_dtype(name, rows.c_str(), database[s], at::kFloat);
    check_same_device(name, query.c_str(), queries[s], "queries[0]", queries[0]);
    check_same_device(name, rows.c_str(), database[s], "queries[0]", queries[0]);
    TORCH_CHECK_VALUE(std::isfinite(float(weights[s])), name,
                      ": weights must be numbers of float32, got ", weights[s]);
  }
  TORCH_CHECK_VALUE(length < kMostRankedRows, name,
                    ": database must have fewer than 2^32 rows, got ", length);
  TORCH_CHECK_VALUE(k >= 0, name, ": k must be at least 0, got ", k);
  if (keep.has_value()) {
    check_shape(name, "keep", *keep, {length}, "[N]");
    check_dtype(name, "keep", *keep, at::kBool);
    check_same_device(name, "keep", *keep, "queries[0]", queries[0]);
  }
}

void check_compressed(TensorList queries, TensorList database, TensorList codes,
                      TensorList bounds) {
  check_length(kCompressedName, "codes", codes.size(), queries.size());
  check_length(kCompressedName, "bounds", bounds.size(), queries.size());
  for (size_t s = 0; s < queries.size(); ++s) {
    const std::string code = c10::str("codes[", s, "]"), bound = c10::str("bounds[", s, "]");
    const int64_t length = database[s].size(0), dims = database[s].size(1);
    check_shape(kCompressedName, code.c_str(), codes[s], {length, dims}, "[N, D] like database");
    check_shape(kCompressedName, bound.c_str(), bounds[s], {length, 3}, "[N, 3]");
    const at::ScalarType dtype = codes[s].scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kChar || dtype == at::kBFloat16, kCompressedName, ": ", code,
                     " must be int8 or bfloat16, got ", dtype);
    TORCH_CHECK_VALUE(dtype != at::kChar || dims <= kMostInt8Dims, kCompressedName, ": ", code,
                      " must have at most 65536 columns of int8, got ", dims);
    check_dtype(kCompressedName, bound.c_str(), bounds[s], at::kFloat);
    check_same_device(kCompressedName, code.c_str(), codes[s], "queries[0]", queries[0]);
    check_same_device(kCompressedName, bound.c_str(), bounds[s], "queries[0]", queries[0]);
  }
}

Hits empty_hits(const Tensor& queries, int64_t k, size_t spaces) {
  const int64_t count = queries.size(0);
  return {at::empty({count, k}, queries.options()),
          at::empty({count, k}, queries.options().dtype(at::kLong)),
          at::empty({count, k, int64_t(spaces)}, queries.options())};
}

std::vector<Tensor> contiguous(TensorList tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

std::vector<uint32_t> kept_rows(const Tensor& keep) {
  const Tensor flags = keep.contiguous();
  const bool* kept = data<bool>(flags);
  std::vector<uint32_t> rows;
  for (int64_t i = 0; i < flags.numel(); ++i) {
    if (kept[i]) rows.push_back(uint32_t(i));
  }
  return rows;
}

// Rows that are scored at a time, whole panels of them. Every tile costs a copy of the queries, and
// the tile's scores are to stay in the second-level cache.
int64_t tile_rows(int64_t queries) {
  return std::clamp<int64_t>((1 << 17) / queries, 256, 960) / kPanelItems * kPanelItems;
}

// Shows rows to the queries [begin, end); best is one for each.
void scan(const RowScorer& scorer, int64_t begin, int64_t end, const RowSpan& rows, TopK* best) {
  const int64_t tile = tile_rows(end - begin);
  RowScorer::Scratch scratch;
  std::vector<float> scores((end - begin) * tile);
  for (int64_t first = 0; first < rows.count; first += tile) {
    const RowSpan part = rows.part(first, std::min(first + tile, rows.count));
    scorer.score(begin, end, part, scratch, scores.data());
    for (int64_t q = 0; q < end - begin; ++q) {
      TORCH_CHECK_VALUE(best[q].take(scores.data() + q * part.count, part), kNan);
    }
  }
}

// Finds one query's best among the rows that are shown, scoring only those whose upper bounds
// reach what is the best so far.
class Settling {
 public:
  Settling(const RowScorer& scorer, const Screen& screen, int64_t query, int64_t k, TopK& best)
      : scorer_(scorer),
        screen_(screen),
        query_(query),
        most_(std::max<int64_t>(256, 4 * k)),
        best_(best) {}

  void show(const float* upper, const RowSpan& rows, RowScorer::Scratch& scratch) {
    for_each_reaching(
        upper, rows.count, [this] { return best_.least(); },
        [&](int64_t i) { waiting_.push_back(upper_key(upper[i], rows[i])); });
    if (int64_t(waiting_.size()) >= most_) settle(scratch);
  }

  void settle(RowScorer::Scratch& scratch) {
    make_heap(waiting_);
    // The first rows of all are scored at once, so that there is something to reach.
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    while (!waiting_.empty() && best_.least() == kNothing) score(scratch);
    if (screen_.refines()) {
      refined_.clear();
      while (reaches()) {
        const int64_t row = row_of(next());
        const float upper = screen_.refined(query_, row);
        if (!(upper < best_.least())) refined_.push_back(upper_key(upper, row));
      }
      waiting_.swap(refined_);
      make_heap(waiting_);
    }
    while (reaches()) score(scratch);
    waiting_.clear();
  }

 private:
  // Bounds that are no numbers, as only strange codes have them, exclude nothing.
  static uint64_t upper_key(float upper, int64_t row) {
    return rank_key(std::isnan(upper) ? std::numeric_limits<float>::infinity() : upper, row);
  }

  // With the highest bound on top: of most rows the place among the others is never asked for.
  static void make_heap(std::vector<uint64_t>& keys) {
    std::make_heap(keys.begin(), keys.end(), std::greater<>());
  }

  bool reaches() const { return !waiting_.empty() && !(score_of(waiting_[0]) < best_.least()); }

  uint64_t next() {
    std::pop_heap(waiting_.begin(), waiting_.end(), std::greater<>());
    const uint64_t key = waiting_.back();
    waiting_.pop_back();
    return key;
  }

  // Scores some of the waiting rows.
  void score(RowScorer::Scratch& scratch) {
    constexpr int64_t kAtOnce = 8;
    uint32_t rows[kAtOnce];
    float scores[kAtOnce];
    int64_t count = 0;
    while (count < kAtOnce && reaches()) rows[count++] = uint32_t(row_of(next()));
    const RowSpan span = {rows, 0, count};
    scorer_.score(query_, query_ + 1, span, scratch, scores);
    TORCH_CHECK_VALUE(best_.take(scores, span), kNan);
  }

  const RowScorer& scorer_;
  const Screen& screen_;
  int64_t query_, most_;
  TopK& best_;
  std::vector<uint64_t> waiting_, refined_;  // keys of upper bounds
};

// The same as `scan`.
void screened_scan(const RowScorer& scorer, const Screen& screen, int64_t begin, int64_t end,
                   const RowSpan& rows, int64_t k, TopK* best) {
  const int64_t queries = end - begin, tile = tile_rows(queries);
  Screen::Scratch scratch;
  RowScorer::Scratch scorer_scratch;
  std::vector<float> upper(queries * tile);
  std::vector<Settling> settling;
  for (int64_t q = 0; q < queries; ++q) {
    settling.emplace_back(scorer, screen, begin + q, k, best[q]);
  }
  for (int64_t first = 0; first < rows.count; first += tile) {
    const RowSpan part = rows.part(first, std::min(first + tile, rows.count));
    screen.upper_bounds(begin, end, part, scratch, upper.data());
    for (int64_t q = 0; q < queries; ++q) {
      settling[q].show(upper.data() + q * part.count, part, scorer_scratch);
    }
  }
  for (Settling& one : settling) one.settle(scorer_scratch);
}

// Calls find(begin, end, rows, best) for blocks of queries and parts of the rows, in threads, and
// collects what it found. Threads that share a block read the rows once; with blocks of their own
// they each rank all rows, which sets the highest bar for the next ones: worth it for short lists.
template <class Find>
Hits search(const Tensor& queries, const RowScorer& scorer, const RowSpan& rows, int64_t k,
            bool apart, const Find& find) {
  k = std::min(k, rows.count);
  const int64_t count = queries.size(0), spaces = scorer.spaces();
  Hits hits = empty_hits(queries, k, spaces);
  if (k == 0 || count == 0) return hits;
  auto* scores = mutable_data<float>(std::get<0>(hits));
  auto* found = mutable_data<int64_t>(std::get<1>(hits));
  auto* parts = mutable_data<float>(std::get<2>(hits));

  constexpr int64_t kPart = 1024, kLeastApart = 64, kMostApart = 1 << 17, kMostBlock = 256;
  const int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  const int64_t pieces = apart && count >= kLeastApart * threads && rows.count <= kMostApart
                             ? 1
                             : std::clamp<int64_t>(rows.count / kPart, 1, threads);
  const int64_t at_once = (threads + pieces - 1) / pieces;
  const int64_t rounds = (count + at_once * kMostBlock - 1) / (at_once * kMostBlock);
  const int64_t size = (count + at_once * rounds - 1) / (at_once * rounds);
  const int64_t group = at_once * size;
  for (int64_t first = 0; first < count; first += group) {
    const int64_t last = std::min(first + group, count);
    const int64_t blocks = (last - first + size - 1) / size;
    std::vector<std::vector<TopK>> best(blocks * pieces);
    parallel_for(0, blocks * pieces, 1, [&](int64_t from, int64_t to) {
      for (int64_t task = from; task < to; ++task) {
        const int64_t piece = task % pieces;
        const int64_t begin = first + task / pieces * size;
        const int64_t end = std::min(begin + size, last);
        best[task].assign(end - begin, TopK(k));
        find(begin, end, rows.part(rows.count * piece / pieces, rows.count * (piece + 1) / pieces),
             best[task].data());
      }
    });
    parallel_for(first, last, 16, [&](int64_t from, int64_t to) {
      RowScorer::Scratch scratch;
      std::vector<uint32_t> ranked(k);
      for (int64_t q = from; q < to; ++q) {
        const int64_t block = (q - first) / size * pieces, i = (q - first) % size;
        TopK& all = best[block][i];
        for (int64_t piece = 1; piece < pieces; ++piece) all.take(best[block + piece][i]);
        int64_t at = 0;
        for (const uint64_t key : all.ranked()) {
          scores[q * k + at] = score_of(key);
          found[q * k + at] = row_of(key);
          ranked[at++] = uint32_t(row_of(key));
        }
        scorer.parts(q, {ranked.data(), 0, k}, scratch, parts + q * k * spaces);
      }
    });
  }
  return hits;
}

struct Rows {
  std::vector<uint32_t> kept;
  RowSpan span;

  Rows(const Tensor& database, const Keep& keep) : span{nullptr, 0, database.size(0)} {
    if (!keep.has_value()) return;
    kept = kept_rows(*keep);
    span = {kept.data(), 0, int64_t(kept.size())};
  }
};

Hits flat_search_cpu(TensorList queries, TensorList database, Weights weights, const Keep& keep,
                     int64_t k) {
  check(kName, queries, database, weights, keep, k);
  const std::vector<Tensor> originals = contiguous(database);
  const RowScorer scorer(queries, originals, weights);
  const Rows rows(database[0], keep);
  return search(queries[0], scorer, rows.span, k, /*apart=*/false,
                [&](int64_t begin, int64_t end, const RowSpan& part, TopK* best) {
                  scan(scorer, begin, end, part, best);
                });
}

Hits flat_search_compressed_cpu(TensorList queries, TensorList database, TensorList codes,
                                TensorList bounds, Weights weights, const Keep& keep, int64_t k) {
  check(kCompressedName, queries, database, weights, keep, k);
  check_compressed(queries, database, codes, bounds);
  const std::vector<Tensor> packed = contiguous(codes), terms = contiguous(bounds);
  const Screen screen(queries, packed, terms, weights);
  if (!screen.holds()) return flat_search(queries, database, weights, keep, k);
  const std::vector<Tensor> originals = contiguous(database);
  const RowScorer scorer(queries, originals, weights);
  const Rows rows(database[0], keep);
  return search(queries[0], scorer, rows.span, k, /*apart=*/true,
                [&](int64_t begin, int64_t end, const RowSpan& part, TopK* best) {
                  screened_scan(scorer, screen, begin, end, part, k, best);
                });
}

Hits flat_search_cuda(TensorList queries, TensorList database, Weights weights, const Keep& keep,
                      int64_t k) {
  check(kName, queries, database, weights, keep, k);
  const at::NoTF32Guard full_float32;
  const c10::OptionalDeviceGuard guard(queries[0].device());
  Tensor kept;
  std::vector<Tensor> rows = database.vec();
  if (keep.has_value()) {
    kept = keep->nonzero().squeeze(1);
    for (Tensor& part : rows) part = part.index_select(0, kept);
  }
  const int64_t count = queries[0].size(0), length = rows[0].size(0);
  k = std::min(k, length);
  Hits hits = empty_hits(queries[0], k, queries.size());
  if (k == 0) return hits;
  constexpr int64_t kScores = int64_t(1) << 26;
  const int64_t block = std::max<int64_t>(kScores / length / int64_t(queries.size()), 1);
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(begin + block, count);
    std::vector<Tensor> dots;
    Tensor scores;
    for (size_t s = 0; s < queries.size(); ++s) {
      dots.push_back(at::mm(queries[s].slice(0, begin, end), rows[s].t()));
      const Tensor weighted = dots.back().mul(double(float(weights[s])));
      scores = s == 0 ? weighted : scores.add(weighted);
    }
    TORCH_CHECK_VALUE(!scores.isnan().any().item<bool>(), kNan);
    const auto [sorted, order] = scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
    const Tensor first = order.slice(1, 0, k);
    for (Tensor& part : dots) part = part.gather(1, first);
    std::get<0>(hits).slice(0, begin, end).copy_(sorted.slice(1, 0, k));
    std::get<1>(hits).slice(0, begin, end).copy_(kept.defined() ? kept.take(first) : first);
    std::get<2>(hits).slice(0, begin, end).copy_(at::stack(dots, 2));
  }
  return hits;
}

Hits flat_search_compressed_cuda(TensorList queries, TensorList database, TensorList codes,
                                 TensorList bounds, Weights weights, const Keep& keep, int64_t k) {
  check(kCompressedName, queries, database, weights, keep, k);
  check_compressed(queries, database, codes, bounds);
  return flat_search_cuda(queries, database, weights, keep, k);
}

Hits flat_search_autocast(TensorList queries, TensorList database, Weights weights,
                          const Keep& keep, int64_t k) {
  const BelowAutocast below;
  return flat_search(at_least_float32(queries), at_least_float32(database), weights, keep, k);
}

Hits flat_search_compressed_autocast(TensorList queries, TensorList database, TensorList codes,
                                     TensorList bounds, Weights weights, const Keep& keep,
                                     int64_t k) {
  const BelowAutocast below;
  return flat_search_compressed(at_least_float32(queries), at_least_float32(database), codes,
                                bounds, weights, keep, k);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def(
      "flat_search(Tensor[] queries, Tensor[] database, float[] weights, Tensor? keep, int k) -> "
      "(Tensor scores, Tensor rows, Tensor parts)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "flat_search_compressed(Tensor[] queries, Tensor[] database, Tensor[] codes, "
      "Tensor[] bounds, float[] weights, Tensor? keep, int k) -> "
      "(Tensor scores, Tensor rows, Tensor parts)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) {
  m.impl("flat_search", flat_search_cpu);
  m.impl("flat_search_compressed", flat_search_compressed_cpu);
}
TORCH_LIBRARY_IMPL(placket, CUDA, m) {
  m.impl("flat_search", flat_search_cuda);
  m.impl("flat_search_compressed", flat_search_compressed_cuda);
}
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("flat_search", torch::autograd::autogradNotImplementedFallback());
  m.impl("flat_search_compressed", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) {
  m.impl("flat_search", flat_search_autocast);
  m.impl("flat_search_compressed", flat_search_compressed_autocast);
}
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) {
  m.impl("flat_search", flat_search_autocast);
  m.impl("flat_search_compressed", flat_search_compressed_autocast);
}

}  // namespace placket
