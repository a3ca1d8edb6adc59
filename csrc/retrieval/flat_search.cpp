#include "retrieval/flat_search.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/checks.h"
#include "base/parallel.h"
#include "ops/autocast.h"
#include "retrieval/ranking.h"

namespace placket {

using at::Tensor;
using Hits = std::tuple<Tensor, Tensor>;

Hits flat_search(const Tensor& queries, const Tensor& database, int64_t k) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("placket::flat_search", "")
                             .typed<decltype(flat_search)>();
  return op.call(queries, database, k);
}

namespace {

constexpr const char* kName = "flat_search";
constexpr const char* kNan =
    ": scores must be numbers, got NaN; queries or database hold NaN or overflow float32";

void check(const Tensor& queries, const Tensor& database, int64_t k) {
  check_shape(kName, "queries", queries, {-1, -1}, "[Q, D]");
  check_shape(kName, "database", database, {-1, queries.size(1)}, "[N, D] with D of queries");
  check_dtype(kName, "queries", queries, at::kFloat);
  check_dtype(kName, "database", database, at::kFloat);
  check_same_device(kName, "database", database, "queries", queries);
  TORCH_CHECK_VALUE(k >= 0 && k <= database.size(0), kName, ": k must be between 0 and the ",
                    database.size(0), " rows of database, got ", k);
  TORCH_CHECK_VALUE(database.size(0) < kMostRankedRows, kName,
                    ": database must have fewer than 2^32 rows, got ", database.size(0));
}

// The k earliest keys of a ranking that have been shown, as a heap with the last of them on top.
class Best {
 public:
  void take(uint64_t key, int64_t k) {
    if (int64_t(keys_.size()) < k) {
      keys_.push_back(key);
      std::push_heap(keys_.begin(), keys_.end());
    } else if (key < keys_.front()) {
      std::pop_heap(keys_.begin(), keys_.end());
      keys_.back() = key;
      std::push_heap(keys_.begin(), keys_.end());
    } else {
      return;
    }
    if (int64_t(keys_.size()) == k) worst_ = score_of(keys_.front());
  }

  void take_row(const float* scores, int64_t first, int64_t count, int64_t k) {
    bool nan = false;
    for (int64_t i = 0; i < count; ++i) {
      nan |= std::isnan(scores[i]);
      if (scores[i] >= worst_) take(rank_key(scores[i], first + i), k);
    }
    TORCH_CHECK_VALUE(!nan, kName, kNan);
  }

  const std::vector<uint64_t>& sorted() {
    std::sort_heap(keys_.begin(), keys_.end());
    return keys_;
  }

 private:
  std::vector<uint64_t> keys_;
  float worst_ = -std::numeric_limits<float>::infinity();
};

// Shows the items [begin, end) to all queries; best is one for each query.
void search(const DotRows& in, int64_t begin, int64_t end, int64_t k, Best* best) {
  constexpr int64_t kTile = 1024;
  std::vector<float> scores(in.query_count * std::min(kTile, end - begin));
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t width = std::min(kTile, end - i);
    DotRows tile = in;
    tile.items += i * in.dims;
    tile.item_count = width;
    dot_scores_cpu(tile, scores.data(), width);
    for (int64_t q = 0; q < in.query_count; ++q) {
      best[q].take_row(scores.data() + q * width, i, width, k);
    }
  }
}

Hits flat_search_cpu(const Tensor& queries, const Tensor& database, int64_t k) {
  check(queries, database, k);
  constexpr int64_t kBlock = 64;
  const Tensor q = dot_rows(queries), d = dot_rows(database);
  const int64_t count = q.size(0), length = d.size(0), dims = q.size(1);
  Hits hits(at::empty({count, k}, queries.options()),
            at::empty({count, k}, queries.options().dtype(at::kLong)));
  if (k == 0) return hits;
  float* scores = mutable_data<float>(std::get<0>(hits));
  int64_t* rows = mutable_data<int64_t>(std::get<1>(hits));
  const auto write = [&](int64_t query, Best& best) {
    int64_t at = query * k;
    for (uint64_t key : best.sorted()) {
      scores[at] = score_of(key);
      rows[at++] = row_of(key);
    }
  };
  const auto block = [&](int64_t begin, int64_t end) {
    return DotRows{data<float>(q) + begin * dims, data<float>(d), end - begin, length, dims};
  };
  // Many queries are divided among the threads, few share the threads for parts of the database.
  if (count >= kBlock) {
    parallel_for(0, count, kBlock / 2, [&](int64_t first, int64_t last) {
      for (int64_t begin = first; begin < last; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, last);
        std::vector<Best> best(end - begin);
        search(block(begin, end), 0, length, k, best.data());
        for (int64_t i = begin; i < end; ++i) write(i, best[i - begin]);
      }
    });
    return hits;
  }
  constexpr int64_t kPart = 4096;
  const int64_t parts = (length + kPart - 1) / kPart;
  std::vector<std::vector<Best>> best(parts, std::vector<Best>(count));
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    // One set of heaps for all parts of a thread; the others stay empty.
    search(block(0, count), first * kPart, std::min(last * kPart, length), k, best[first].data());
  });
  for (int64_t i = 0; i < count; ++i) {
    Best all;
    for (auto& part : best) {
      for (uint64_t key : part[i].sorted()) all.take(key, k);
    }
    write(i, all);
  }
  return hits;
}

Hits flat_search_cuda(const Tensor& queries, const Tensor& database, int64_t k) {
  check(queries, database, k);
  const at::NoTF32Guard full_float32;
  const c10::OptionalDeviceGuard guard(queries.device());
  const int64_t count = queries.size(0), length = database.size(0);
  Hits hits(at::empty({count, k}, queries.options()),
            at::empty({count, k}, queries.options().dtype(at::kLong)));
  if (k == 0) return hits;
  constexpr int64_t kScores = int64_t(1) << 26;
  const int64_t block = std::max<int64_t>(kScores / length, 1);
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(begin + block, count);
    const Tensor scores = at::mm(queries.slice(0, begin, end), database.t());
    TORCH_CHECK_VALUE(!scores.isnan().any().item<bool>(), kName, kNan);
    const auto [sorted, order] = scores.sort(/*stable=*/true, /*dim=*/1, /*descending=*/true);
    std::get<0>(hits).slice(0, begin, end).copy_(sorted.slice(1, 0, k));
    std::get<1>(hits).slice(0, begin, end).copy_(order.slice(1, 0, k));
  }
  return hits;
}

Hits flat_search_autocast(const Tensor& queries, const Tensor& database, int64_t k) {
  const BelowAutocast below;
  return flat_search(at_least_float32(queries), at_least_float32(database), k);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(placket, m) {
  m.def("flat_search(Tensor queries, Tensor database, int k) -> (Tensor scores, Tensor rows)",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(placket, CPU, m) { m.impl("flat_search", flat_search_cpu); }
TORCH_LIBRARY_IMPL(placket, CUDA, m) { m.impl("flat_search", flat_search_cuda); }
TORCH_LIBRARY_IMPL(placket, Autograd, m) {
  m.impl("flat_search", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(placket, AutocastCPU, m) { m.impl("flat_search", flat_search_autocast); }
TORCH_LIBRARY_IMPL(placket, AutocastCUDA, m) { m.impl("flat_search", flat_search_autocast); }

}  // namespace placket
