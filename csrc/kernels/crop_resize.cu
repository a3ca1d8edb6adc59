// One block makes a tile of one crop, kTile x kTile pixels. `along` is the axis of Pillow's first
// pass and `across` that of its second. Sources are taken in chunks of kChunk lines across: the
// first pass turns a chunk into 8-bit values in shared memory, the second adds what they are worth
// to the tile's integer sums, which threads keep in registers. So any scale fits, and as sums are
// integers, every bit is that of the CPU kernel. Weights need a double division each: the block
// makes those of its tile once.
#include "base/bfloat16.h"
#include "base/launch.cuh"
#include "kernels/crop_resize.h"
#include "kernels/resample_taps.h"

namespace placket {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 8;  // of the second dimension; the first is kTile
constexpr int kChunk = 64;
constexpr int kStored = 64;  // weights of an output coordinate that are kept in shared memory

using BilinearTaps = FilterTaps<Filter::kBilinear>;

// One axis of the crop. Source coordinates count from the box's edge.
struct CropAxis {
  int64_t box_size, size;  // of the box and of the result
  int64_t resized, start;  // of the whole resized box, and where the result begins in it
  int64_t first, last;     // sources inside the image
  int64_t stride;          // bytes between neighbours in the image
  int64_t out_stride;
  bool flip;
};

// The taps of one axis for the tile's output coordinates.
struct TileAxis {
  BilinearTaps taps[kTile];
  int32_t weights[kStored][kTile];

  __device__ void fill(const CropAxis& axis, int64_t tile_begin) {
    const int i = threadIdx.x;
    const int64_t target = tile_begin + i;
    if (target >= axis.size) return;
    BilinearTaps mine(axis.box_size, axis.resized,
                      axis.start + (axis.flip ? axis.size - 1 - target : target));
    mine.clip(axis.first, axis.last);
    if (threadIdx.y == 0) taps[i] = mine;
    const int64_t count = mine.end() - mine.begin();
    for (int t = threadIdx.y; t < kStored && t < count; t += kThreads) {
      weights[t][i] = mine.weight(mine.begin() + t);
    }
  }

  __device__ int32_t weight(int i, int64_t source) const {
    const int64_t t = source - taps[i].begin();
    return t < kStored ? weights[t][i] : taps[i].weight(source);
  }
};

template <class T>
__global__ void __launch_bounds__(kTile* kThreads, 3)
    crop_resize_kernel(CropResize in, int64_t tiles_down, int64_t tiles_right, T* out) {
  __shared__ TileAxis along_tile, across_tile;
  __shared__ uint8_t chunk[kChunk][kTile][3];

  const int64_t crop = blockIdx.x / (tiles_down * tiles_right);
  const int64_t tile_y = blockIdx.x / tiles_right % tiles_down * kTile;
  const int64_t tile_x = blockIdx.x % tiles_right * kTile;
  out += crop * 3 * in.height * in.width;

  const int64_t* box = in.boxes + 4 * crop;
  const int64_t index = in.image_index[crop];
  const FitWindow window = window_of(in, crop);
  bool valid = index >= 0 && index < in.images && valid_box(box) &&
               valid_window(window, in.height, in.width);
  int64_t offset = 0, image_height = 0, image_width = 0;
  if (valid) {
    offset = in.offsets[index];
    image_height = in.sizes[2 * index];
    image_width = in.sizes[2 * index + 1];
    valid = valid_image(offset, image_height, image_width, in.bytes);
  }

  const int64_t column_stride = in.channels_last ? 3 : 1;
  const int64_t channel_stride = in.channels_last ? 1 : in.height * in.width;
  const CropAxis rows = {
      box[3] - box[1],       in.height,       window.resized_height,    window.top, -box[1],
      image_height - box[1], image_width * 3, in.width * column_stride, false};
  const CropAxis columns = {box[2] - box[0],
                            in.width,
                            window.resized_width,
                            window.left,
                            -box[0],
                            image_width - box[0],
                            3,
                            column_stride,
                            in.flip != nullptr && in.flip[crop]};
  const bool down_first =
      valid && vertical_first(rows.box_size, columns.box_size, rows.resized, columns.resized);
  const CropAxis along = down_first ? rows : columns;
  const CropAxis across = down_first ? columns : rows;
  const int64_t tile_along = down_first ? tile_y : tile_x;
  const int64_t tile_across = down_first ? tile_x : tile_y;

  const int a = threadIdx.x;
  const bool mine = tile_along + a < along.size;
  constexpr int kAcross = kTile / kThreads;
  int32_t sums[kAcross][3];
  for (int k = 0; k < kAcross; ++k) {
    for (int c = 0; c < 3; ++c) sums[k][c] = kWeightHalf;
  }

  if (valid) {
    along_tile.fill(along, tile_along);
    across_tile.fill(across, tile_across);
    __syncthreads();

    const int64_t left = across.size - tile_across;
    const int count = left < kTile ? int(left) : kTile;
    const BilinearTaps& one = across_tile.taps[0];
    const BilinearTaps& other = across_tile.taps[count - 1];
    int64_t begin = one.begin() < other.begin() ? one.begin() : other.begin();
    int64_t end = one.end() > other.end() ? one.end() : other.end();
    // Taps of a box beside the image are empty, wherever they begin.
    if (begin < across.first) begin = across.first;
    if (end > across.last) end = across.last;
    const uint8_t* pixels = in.pixels + offset + box[0] * columns.stride + box[1] * rows.stride;

    for (; begin < end; begin += kChunk) {
      const int lines = end - begin < kChunk ? int(end - begin) : kChunk;
      if (mine) {
        constexpr int kLines = kChunk / kThreads;
        int32_t line_sums[kLines][3];
        for (int k = 0; k < kLines; ++k) {
          for (int c = 0; c < 3; ++c) line_sums[k][c] = kWeightHalf;
        }
        const BilinearTaps& taps = along_tile.taps[a];
        for (int64_t source = taps.begin(); source < taps.end(); ++source) {
          const int32_t weight = along_tile.weight(a, source);
          const uint8_t* pixel = pixels + source * along.stride + begin * across.stride;
#pragma unroll
          for (int k = 0; k < kLines; ++k) {
            const int line = threadIdx.y + k * kThreads;
            if (line >= lines) break;
            for (int c = 0; c < 3; ++c) {
              line_sums[k][c] += weight * pixel[line * across.stride + c];
            }
          }
        }
#pragma unroll
        for (int k = 0; k < kLines; ++k) {
          const int line = threadIdx.y + k * kThreads;
          for (int c = 0; c < 3; ++c) chunk[line][a][c] = round_to_uint8(line_sums[k][c]);
        }
      }
      __syncthreads();
      if (mine) {
#pragma unroll
        for (int k = 0; k < kAcross; ++k) {
          const int b = threadIdx.y + k * kThreads;
          if (b >= count) break;
          const BilinearTaps& taps = across_tile.taps[b];
          const int64_t first = taps.begin() > begin ? taps.begin() : begin;
          const int64_t last = taps.end() < begin + lines ? taps.end() : begin + lines;
          for (int64_t source = first; source < last; ++source) {
            const int32_t weight = across_tile.weight(b, source);
            for (int c = 0; c < 3; ++c) sums[k][c] += weight * chunk[source - begin][a][c];
          }
        }
      }
      __syncthreads();
    }
  }

  if (!mine) return;
#pragma unroll
  for (int k = 0; k < kAcross; ++k) {
    const int64_t b = tile_across + threadIdx.y + k * kThreads;
    if (b >= across.size) break;
    T* pixel = out + (tile_along + a) * along.out_stride + b * across.out_stride;
    for (int c = 0; c < 3; ++c) {
      const uint8_t value = round_to_uint8(sums[k][c]);
      pixel[c * channel_stride] = T(normalize_uint8(value, in.mean[c], in.std[c]));
    }
  }
}

}  // namespace

template <class T>
const char* launch_crop_resize(const CropResize& in, T* out, Stream stream) {
  const int64_t tiles_down = (in.height + kTile - 1) / kTile;
  const int64_t tiles_right = (in.width + kTile - 1) / kTile;
  const int64_t blocks = in.crops * tiles_down * tiles_right;
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "more than 2^31 tiles of 32 x 32 pixels";
  crop_resize_kernel<T>
      <<<unsigned(blocks), dim3(kTile, kThreads), 0, stream>>>(in, tiles_down, tiles_right, out);
  return launch_error();
}

template const char* launch_crop_resize<float>(const CropResize&, float*, Stream);
template const char* launch_crop_resize<BFloat16>(const CropResize&, BFloat16*, Stream);

}  // namespace placket
