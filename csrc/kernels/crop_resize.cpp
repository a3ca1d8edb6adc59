#include "kernels/crop_resize.h"

#include "base/bfloat16.h"
#include "base/parallel.h"
#include "kernels/resample.h"

namespace placket {

template <class T>
void crop_resize_cpu(const CropResize& in, T* out) {
  const int64_t area = in.height * in.width;
  const int64_t channel_stride = in.channels_last ? 1 : area;
  const int64_t column_stride = in.channels_last ? 3 : 1;
  parallel_for(0, in.crops, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = in.image_index[i];
      const int64_t* box = in.boxes + 4 * i;
      const FitWindow window = window_of(in, i);
      const ResampleJob job = {in.pixels + in.offsets[image],
                               in.sizes[2 * image],
                               in.sizes[2 * image + 1],
                               box[0],
                               box[1],
                               box[2],
                               box[3],
                               window.resized_height,
                               window.resized_width,
                               window.top,
                               window.left,
                               in.flip != nullptr && in.flip[i]};
      resample_normalized_cpu(job, in.height, in.width, in.mean, in.std, channel_stride,
                              in.width * column_stride, column_stride, out + i * 3 * area);
    }
  });
}

template void crop_resize_cpu<float>(const CropResize&, float*);
template void crop_resize_cpu<BFloat16>(const CropResize&, BFloat16*);

}  // namespace placket
