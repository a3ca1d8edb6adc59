#include "retrieval/top_k.h"

#include <algorithm>
#include <cmath>

#include "base/simd.h"

namespace placket {

PLACKET_SIMD void flag_reaching(const float* scores, int64_t count, float least, uint8_t* flags) {
  for (int64_t i = 0; i < count; ++i) flags[i] = uint8_t(!(scores[i] < least));
}

bool TopK::take(const float* scores, const RowSpan& rows) {
  bool nan = false;
  for_each_reaching(
      scores, rows.count, [this] { return least_; },
      [&](int64_t i) {
        nan |= std::isnan(scores[i]);
        take(rank_key(scores[i], rows[i]));
      });
  return !nan;
}

void TopK::take(uint64_t key) {
  if (int64_t(keys_.size()) < k_) {
    keys_.push_back(key);
    std::push_heap(keys_.begin(), keys_.end());
  } else if (key < keys_.front()) {
    std::pop_heap(keys_.begin(), keys_.end());
    keys_.back() = key;
    std::push_heap(keys_.begin(), keys_.end());
  } else {
    return;
  }
  if (int64_t(keys_.size()) == k_) least_ = score_of(keys_.front());
}

const std::vector<uint64_t>& TopK::ranked() {
  std::sort_heap(keys_.begin(), keys_.end());
  return keys_;
}

}  // namespace placket
