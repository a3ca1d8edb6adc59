#include "kernels/cut_pictures.h"

#include <array>
#include <memory>

#include "values.h"

namespace placket {
namespace {

using Box = std::array<int64_t, 4>;

TEST(EmulatedCuda, CutPictures) {
  // The second has more rows than a picture has blocks, and more bytes in a row than a block
  // threads.
  const std::vector<int64_t> sizes = {1, 1, 37, 91}, offsets = {0, 3};
  std::mt19937 random(1);
  const auto bytes = whole_values(3 + 37 * 91 * 3, 256, random);
  const std::vector<uint8_t> pixels(bytes.begin(), bytes.end());

  std::vector<int64_t> image_index, boxes, out_offsets;
  int64_t length = 0;
  for (int64_t image = 0; image < 2; ++image) {
    const int64_t height = sizes[2 * image], width = sizes[2 * image + 1];
    const Box of_image[] = {
        {0, 0, width, height},
        {width / 2, height / 2, width / 2 + 1, height / 2 + 1},
        {-2, height / 3, width - 1, height},         // over the left border
        {0, -35, width, height - 1},                 // the top
        {width / 3, 0, width + 90, height},          // the right
        {width / 3, height / 2, width, height + 3},  // the bottom
        {-1, -1, width + 1, height + 1},             // all of them
        {-4, 0, 0, height},                          // beside the image
        {width + 1, height, width + 3, height + 2},
    };
    for (const Box& box : of_image) {
      for (int i = 0; i < 2; ++i) {
        image_index.push_back(image);
        boxes.insert(boxes.end(), box.begin(), box.end());
        out_offsets.push_back(length);
        length += (box[2] - box[0]) * (box[3] - box[1]) * 3;
      }
    }
  }
  const auto pictures = int64_t(image_index.size());
  const auto flip = std::make_unique<bool[]>(pictures);
  for (int64_t i = 0; i < pictures; ++i) flip[i] = i % 2 == 1;

  auto found = unwritten<uint8_t>(length), expected = found;
  const char* error =
      launch_cut_pictures({pixels.data(), offsets.data(), sizes.data(), image_index.data(),
                           boxes.data(), flip.get(), out_offsets.data(), pictures},
                          found.data(), nullptr);
  ASSERT_EQ(error, nullptr);
  for (int64_t i = 0; i < pictures; ++i) {
    const int64_t image = image_index[i];
    cut_picture_cpu(pixels.data() + offsets[image], sizes[2 * image], sizes[2 * image + 1],
                    boxes.data() + 4 * i, flip[i], expected.data() + out_offsets[i]);
  }
  EXPECT_EQ(found, expected);
}

TEST(EmulatedCuda, CutPicturesOfNone) {
  EXPECT_EQ(launch_cut_pictures(CutPictures{}, nullptr, nullptr), nullptr);
}

}  // namespace
}  // namespace placket
