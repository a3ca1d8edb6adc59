#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/panel_scores.h"

namespace placket {

// Whole numbers, so that sums are exact in any order; codes at their limits among them.
template <class Query, class Item, class Score>
struct PanelCase {
  int64_t query_count, item_count, dims, padded;
  std::vector<Query> queries;
  std::vector<Item> items;
  struct alignas(64) Line {
    char bytes[kPanelRow];
  };
  std::vector<Line> panel;

  PanelCase(int64_t query_count, int64_t item_count, int64_t dims)
      : query_count(query_count),
        item_count(item_count),
        dims(dims),
        padded(panel_padded(dims * int64_t(sizeof(Item)))),
        queries(query_count * padded / int64_t(sizeof(Query))),
        items(item_count * dims),
        panel(padded * kPanelItems / kPanelRow) {
    // What lies in a query past the dimensions counts for nothing.
    for (size_t i = 0; i < queries.size(); ++i) queries[i] = Query(i % 5 ? i * 7 % 100 : 127);
    for (size_t i = 0; i < items.size(); ++i) {
      items[i] = Item(i % 6 ? float(i * 5 % 200) - 100 : -128.0f);
    }
    std::memset(panel.data(), 85, panel.size() * kPanelRow);
    std::vector<const void*> rows;
    for (int64_t i = 0; i < item_count; ++i) rows.push_back(items.data() + i * dims);
    pack_panel(rows.data(), item_count, dims * int64_t(sizeof(Item)), panel.data());
  }

  int64_t row() const { return padded / int64_t(sizeof(Query)); }
  const Item* packed() const { return reinterpret_cast<const Item*>(panel.data()); }

  // scores(queries, count, padded, panel, scores, stride)
  template <class Scores>
  void expect(const Scores& scores) const {
    constexpr int64_t kStride = kPanelItems + 3;
    constexpr Score kUntouched = 12345;
    std::vector<Score> result(query_count * kStride, kUntouched);
    scores(queries.data(), query_count, padded, packed(), result.data(), kStride);
    for (int64_t q = 0; q < query_count; ++q) {
      for (int64_t i = 0; i < kStride; ++i) {
        Score expected = i < kPanelItems ? 0 : kUntouched;
        for (int64_t d = 0; d < dims && i < item_count; ++d) {
          expected += Score(queries[q * row() + d]) * Score(items[i * dims + d]);
        }
        ASSERT_EQ(result[q * kStride + i], expected)
            << query_count << " x " << item_count << " x " << dims << " at " << q << ", " << i;
      }
    }
  }
};

using Int8Case = PanelCase<uint8_t, int8_t, int32_t>;
using BFloat16Case = PanelCase<BFloat16, BFloat16, float>;

}  // namespace placket
