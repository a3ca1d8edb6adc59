#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "retrieval/ranking.h"

namespace placket {

// Rows of a database: those listed, or as many from `first` on.
struct RowSpan {
  const uint32_t* listed;
  int64_t first, count;

  int64_t operator[](int64_t i) const { return listed != nullptr ? listed[i] : first + i; }
  RowSpan part(int64_t begin, int64_t end) const {
    return {listed != nullptr ? listed + begin : nullptr, first + begin, end - begin};
  }
};

// Calls f(i) for every score that is not below `least`, NaN among them. `least` is asked for again
// now and then, since it rises while rows are taken.
template <class Least, class F>
void for_each_reaching(const float* scores, int64_t count, const Least& least, const F& f);

// The first k of a ranking, of the rows that have been shown.
class TopK {
 public:
  explicit TopK(int64_t k) : k_(k) {}

  // What a score has to reach to be among them.
  float least() const { return least_; }

  // Whether no score was NaN.
  [[nodiscard]] bool take(const float* scores, const RowSpan& rows);
  void take(const TopK& other) {
    for (const uint64_t key : other.keys_) take(key);
  }

  // In the order of the ranking; nothing is taken after that.
  const std::vector<uint64_t>& ranked();

 private:
  void take(uint64_t key);

  int64_t k_;
  std::vector<uint64_t> keys_;  // a heap with the last of them on top
  float least_ = -std::numeric_limits<float>::infinity();
};

// Whether any score is not below `least`.
bool any_reaches(const float* scores, int64_t count, float least);

template <class Least, class F>
void for_each_reaching(const float* scores, int64_t count, const Least& least, const F& f) {
  constexpr int64_t kStep = 64;
  for (int64_t begin = 0; begin < count; begin += kStep) {
    const int64_t end = begin + kStep < count ? begin + kStep : count;
    if (!any_reaches(scores + begin, end - begin, least())) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (!(scores[i] < least())) f(i);
    }
  }
}

}  // namespace placket
