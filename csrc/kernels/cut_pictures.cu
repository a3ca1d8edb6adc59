// kBlocks blocks share the rows of one picture; a thread copies bytes, neighbours neighbouring
// ones.
#include "base/launch.cuh"
#include "kernels/cut_pictures.h"

namespace placket {
namespace {

constexpr int kBlocks = 32;
constexpr int kThreads = 256;

__global__ void cut_pictures_kernel(CutPictures in, uint8_t* out) {
  const int64_t picture = blockIdx.x / kBlocks;
  const int64_t image = in.image_index[picture];
  const int64_t image_height = in.sizes[2 * image], image_width = in.sizes[2 * image + 1];
  const int64_t* box = in.boxes + 4 * picture;
  const int64_t x0 = box[0], y0 = box[1], x1 = box[2], y1 = box[3];
  const bool flip = in.flip[picture];
  const uint8_t* pixels = in.pixels + in.offsets[image];
  out += in.out_offsets[picture];

  const int row_bytes = int(x1 - x0) * 3;
  for (int64_t y = y0 + blockIdx.x % kBlocks; y < y1; y += kBlocks) {
    const uint8_t* from = pixels + y * image_width * 3;
    uint8_t* row = out + (y - y0) * row_bytes;
    for (int i = threadIdx.x; i < row_bytes; i += kThreads) {
      const int column = i / 3;
      const int64_t x = flip ? x1 - 1 - column : x0 + column;
      const bool inside = 0 <= x && x < image_width && 0 <= y && y < image_height;
      row[i] = inside ? from[x * 3 + i % 3] : uint8_t(0);
    }
  }
}

}  // namespace

const char* launch_cut_pictures(const CutPictures& in, uint8_t* out, Stream stream) {
  const int64_t blocks = in.pictures * kBlocks;
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "more than 2^26 pictures";
  cut_pictures_kernel<<<unsigned(blocks), kThreads, 0, stream>>>(in, out);
  return launch_error();
}

}  // namespace placket
