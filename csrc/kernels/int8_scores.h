#pragma once

#include <cstdint>

namespace placket {

// Dot products of 8-bit integers, exact whatever the instructions: queries in [0, 63], items in
// [-128, 127], sums of 32 bits.
//
// A panel is kPanelItems items laid out four dimensions at a time, [dims / 4, kPanelItems, 4], so
// that a register holds different items and no sum has to be gathered from its lanes.
constexpr int64_t kPanelItems = 24;
constexpr int64_t kPanelStep = 4;
constexpr int64_t kInt8Pad = 8;
constexpr int64_t kMostInt8Dims = 1 << 16;  // sums stay below 2^31

// Items past `count` and dimensions past `dims` become zeros; `padded` is the next multiple of
// kInt8Pad.
void pack_int8_panel(const int8_t* const* items,  // [count], each [dims]
                     int64_t count, int64_t dims,
                     int8_t* panel);  // [padded / 4, kPanelItems, 4]

// scores[q * stride + i] for the items of a panel. On the calling thread alone.
void int8_scores(const uint8_t* queries,  // [query_count, padded]
                 int64_t query_count, int64_t padded, const int8_t* panel, int32_t* scores,
                 int64_t stride);

}  // namespace placket
