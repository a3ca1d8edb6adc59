#pragma once

#include <cstdint>

namespace placket {

// Dot products of 8-bit integers, exact whatever the instructions: queries in [0, 127], items in
// [-128, 127], sums of 32 bits.
//
// A panel is kPanelItems items laid out four dimensions at a time, [dims / 4, kPanelItems, 4], so
// that a register holds different items and no sum has to be gathered from its lanes.
constexpr int64_t kPanelItems = 24;
constexpr int64_t kPanelStep = 4;
constexpr int64_t kMostInt8Dims = 1 << 16;  // sums stay below 2^31

// Items past `count` and dimensions past `dims` become zeros; `padded` is the next multiple of
// kPanelStep.
void pack_int8_panel(const int8_t* const* items,  // [count], each [dims]
                     int64_t count, int64_t dims,
                     int8_t* panel);  // [padded / 4, kPanelItems, 4]

// scores[q * stride + i] for the items of a panel. On the calling thread alone.
void int8_scores(const uint8_t* queries,  // [query_count, padded]
                 int64_t query_count, int64_t padded, const int8_t* panel, int32_t* scores,
                 int64_t stride);

// The sum of query[d] * item[d]; below 2^31 where no value of the query exceeds
// int8_dot_most(dims).
int32_t int8_dot(const int16_t* query, const int8_t* item, int64_t dims);
constexpr int64_t int8_dot_most(int64_t dims) {
  const int64_t most = (int64_t(1) << 31) / (128 * (dims + 1));
  return most < 32767 ? most : 32767;
}

}  // namespace placket
