#pragma once

#include <cstdint>

#include "base/bfloat16.h"

namespace placket {

// Dot products of rows of 8-bit integers or bfloat16 with a panel: kPanelItems items laid out four
// bytes at a time, [padded / 4, kPanelItems, 4], so that a register holds different items and no
// sum has to be gathered from its lanes. All on the calling thread alone.
constexpr int64_t kPanelItems = 32;
constexpr int64_t kPanelStep = 4;
constexpr int64_t kPanelRow = 64;  // rows of queries and items have a multiple of so many bytes

constexpr int64_t panel_padded(int64_t bytes) {
  return (bytes + kPanelRow - 1) / kPanelRow * kPanelRow;
}

// Items past `count` and bytes past `bytes` become zeros.
void pack_panel(const void* const* items,  // [count], each of so many bytes
                int64_t count, int64_t bytes,
                void* panel);  // panel_padded(bytes) * kPanelItems bytes, aligned to kPanelRow

// scores[q * stride + i] for the items of a panel, exact whatever the instructions: queries in
// [0, 127], items in [-128, 127], sums of 32 bits. What queries hold past the items' dimensions
// counts for nothing.
constexpr int64_t kMostInt8Dims = 1 << 16;  // sums stay below 2^31
void int8_scores(const uint8_t* queries,    // [query_count, padded]
                 int64_t query_count, int64_t padded, const int8_t* panel, int32_t* scores,
                 int64_t stride);
bool multiplies_int8();  // whether this processor has instructions for such sums

// The same of bfloat16, with sums of float32 in any order; subnormal numbers may count as zeros.
// Slow where this processor has no products of bfloat16.
bool multiplies_bfloat16();
void bfloat16_scores(const BFloat16* queries,  // [query_count, padded / 2]
                     int64_t query_count, int64_t padded, const BFloat16* panel, float* scores,
                     int64_t stride);

// The sum of query[d] * item[d]; below 2^31 where no value of the query exceeds
// int8_dot_most(dims).
int32_t int8_dot(const int16_t* query, const int8_t* item, int64_t dims);
constexpr int64_t int8_dot_most(int64_t dims) {
  const int64_t most = (int64_t(1) << 31) / (128 * (dims + 1));
  return most < 32767 ? most : 32767;
}

}  // namespace placket
