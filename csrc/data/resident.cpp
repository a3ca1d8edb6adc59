#include "data/resident.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <utility>

#include "base/dispatch.h"
#include "base/interrupt.h"
#include "base/parallel.h"
#include "base/stream.h"
#include "kernels/crop_resize.h"
#include "kernels/cut_pictures.h"
#include "ops/crop_resize.h"

namespace placket {

using at::Tensor;

ResidentPixels make_resident(std::shared_ptr<const Store> store, at::Device device) {
  TORCH_CHECK_VALUE(store->kind() != StoreKind::kFiles, "resident: ", store->path(),
                    " must be a store of pixels, got one of files; pack it with a size");
#ifdef PLACKET_CUDA
  TORCH_CHECK_VALUE(device.is_cpu() || device.is_cuda(),
                    "resident: device must be cpu or cuda, got ", device);
#else
  TORCH_CHECK_VALUE(device.is_cpu(),
                    "resident: device must be cpu where placket was built without CUDA, got ",
                    device);
#endif
  const int64_t count = store->size();
  Tensor offsets = at::empty({count}, at::kLong), sizes = at::empty({count, 2}, at::kLong);
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  auto* size = sizes.mutable_data_ptr<int64_t>();
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) {
    const StoreRecord& record = store->record(i);
    offset[i] = bytes;
    size[2 * i] = record.height;
    size[2 * i + 1] = record.width;
    bytes += int64_t(record.length);
  }
  const Tensor pixels = at::empty({bytes}, at::TensorOptions(at::kByte).device(device));
  for (int64_t i = 0; i < count; ++i) {
    interruption_point();
    const auto length = int64_t(store->record(i).length);
    // Only read: from_blob knows no constant memory.
    auto* mapped = const_cast<uint8_t*>(store->bytes(i));
    pixels.narrow(0, offset[i], length).copy_(at::from_blob(mapped, {length}, at::kByte));
  }
  return {std::move(store), pixels, offsets.to(device), sizes.to(device)};
}

void check_resident(const char* user, const ImageList& images, const Preprocess& preprocess,
                    const Augment& augment) {
  TORCH_CHECK_VALUE(preprocess.interpolation == "bilinear", user,
                    ": interpolation must be 'bilinear' with resident pixels, got '",
                    preprocess.interpolation, "'");
  TORCH_CHECK_VALUE(preprocess.arithmetic == "pillow", user,
                    ": arithmetic must be 'pillow' with resident pixels, got '",
                    preprocess.arithmetic, "'");
  const char* packed = images.store->kind() == StoreKind::kUprightPixels ? "apply" : "ignore";
  TORCH_CHECK_VALUE(preprocess.orientation == packed, user, ": orientation must be '", packed,
                    "', with which the pixels were packed, got '", preprocess.orientation, "'");
  const std::pair<const char*, bool> lacking[] = {{"color_jitter", augment.color_jitter.active()},
                                                  {"grayscale", augment.grayscale > 0},
                                                  {"blur", augment.blur.p > 0},
                                                  {"erasing", augment.erasing.p > 0}};
  for (const auto& [name, active] : lacking) {
    TORCH_CHECK_VALUE(!active, user, ": ", name,
                      " must be off with resident pixels, which are flipped and cropped only, got "
                      "it with a probability above 0");
  }
}

Frame frame_resident(const ImageList& images, int64_t image, const Preprocess& preprocess,
                     const Augment& augment, RandomStream& random) {
  const StoreRecord& record = images.store->record(images.records[image]);
  std::optional<Box> box;
  if (!images.boxes.empty()) box = images.boxes[image];
  const Frame frame = frame_picture(record.height, record.width, box, preprocess, augment, &random);
  const int64_t corners[4] = {frame.x0, frame.y0, frame.x1, frame.y1};
  TORCH_CHECK_VALUE(valid_box(corners) && valid_window(frame.fit, preprocess.size, preprocess.size),
                    "resident picture must stay within ", kCropLimit,
                    " pixels of the image's corner, got [", frame.x0, ", ", frame.y0, ", ",
                    frame.x1, ", ", frame.y1, "]");
  return frame;
}

namespace {

Tensor cut_pictures(const ResidentPixels& resident, const CutPictures& in, int64_t bytes) {
  const Tensor out = at::empty({bytes}, resident.pixels.options());
  auto* to = mutable_data<uint8_t>(out);
#ifdef PLACKET_CUDA
  if (out.is_cuda()) {
    const c10::DeviceGuard guard(out.device());
    check_launch("resident", launch_cut_pictures(in, to, current_stream(out)));
    return out;
  }
#endif
  parallel_for(0, in.pictures, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t image = in.image_index[i];
      cut_picture_cpu(in.pixels + in.offsets[image], in.sizes[2 * image], in.sizes[2 * image + 1],
                      in.boxes + 4 * i, in.flip[i], to + in.out_offsets[i]);
    }
  });
  return out;
}

}  // namespace

void make_on_device(const ImageList& images, const std::vector<Frame>& frames,
                    const Preprocess& preprocess, bool keep_pixels, Batch& batch) {
  const ResidentPixels& resident = *images.resident;
  const auto rows = int64_t(frames.size());
  const at::Device device = resident.pixels.device();
  // All numbers in one tensor, which is copied once; pinned, so that the copy waits for nothing.
  const Tensor host =
      at::empty({13, rows}, at::TensorOptions(at::kLong).pinned_memory(device.is_cuda()));
  auto* record = host.mutable_data_ptr<int64_t>();
  int64_t* box = record + rows;
  int64_t* window = box + 4 * rows;
  int64_t* flip = window + 4 * rows;
  int64_t* offset = flip + rows;
  int64_t* size = offset + rows;
  int64_t bytes = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const Frame& frame = frames[i];
    const FitWindow fit = source_window(frame, preprocess.size);
    const int64_t height = frame.y1 - frame.y0, width = frame.x1 - frame.x0;
    record[i] = images.records[batch.plan.images[i]];
    for (const int64_t edge : {frame.x0, frame.y0, frame.x1, frame.y1}) *box++ = edge;
    for (const int64_t number : {fit.resized_height, fit.resized_width, fit.top, fit.left}) {
      *window++ = number;
    }
    flip[i] = int64_t(frame.flip);
    offset[i] = bytes;
    size[2 * i] = height;
    size[2 * i + 1] = width;
    bytes += height * width * 3;
  }
  const Tensor numbers = host.to(device, /*non_blocking=*/true);
  const auto block = [&](int64_t begin, int64_t columns) {
    return numbers.narrow(0, begin, columns).view({rows, columns});
  };
  const Tensor chosen = numbers[0], boxes = block(1, 4), windows = block(5, 4);
  const Tensor flips = numbers[9].to(at::kBool);
  const std::array<double, 3> mean = {preprocess.mean[0], preprocess.mean[1], preprocess.mean[2]};
  const std::array<double, 3> std = {preprocess.std[0], preprocess.std[1], preprocess.std[2]};
  batch.images = crop_resize(resident.pixels, resident.offsets, resident.sizes, boxes, chosen,
                             preprocess.size, preprocess.size, mean, std, at::kFloat,
                             /*channels_last=*/true, flips, windows);
  if (!keep_pixels) return;
  batch.offsets = numbers[10];
  batch.sizes = block(11, 2);
  batch.pixels =
      cut_pictures(resident,
                   {data<uint8_t>(resident.pixels), data<int64_t>(resident.offsets),
                    data<int64_t>(resident.sizes), data<int64_t>(chosen), data<int64_t>(boxes),
                    data<bool>(flips), data<int64_t>(batch.offsets), rows},
                   bytes);
}

}  // namespace placket
