#include "kernels/gated_fusion.h"

#include "values.h"

namespace placket {
namespace {

template <class T>
struct Given {
  std::vector<T> gate, selection, image, text, image_clip, text_clip, grad;
  GatedFusion<T> in;

  Given(int64_t rows, int64_t dims, std::mt19937& random)
      : gate(normal_values<T>(rows * dims, random)),
        selection(normal_values<T>(rows, random)),
        image(normal_values<T>(rows * dims, random)),
        text(normal_values<T>(rows * dims, random)),
        image_clip(normal_values<T>(rows * dims, random)),
        text_clip(normal_values<T>(rows * dims, random)),
        grad(normal_values<T>(rows * dims, random)),
        in{gate.data(),       selection.data(), image.data(), text.data(),
           image_clip.data(), text_clip.data(), rows,         dims} {}
};

template <class T>
struct Gradients {
  std::vector<T> gate, selection, image, text, image_clip, text_clip;
  bool clips;

  Gradients(int64_t rows, int64_t dims, bool clips)
      : gate(unwritten<T>(rows * dims)),
        selection(unwritten<T>(rows)),
        image(gate),
        text(gate),
        image_clip(gate),
        text_clip(gate),
        clips(clips) {}

  GatedFusionGradients<T> out() {
    return {gate.data(),
            selection.data(),
            image.data(),
            text.data(),
            clips ? image_clip.data() : nullptr,
            clips ? text_clip.data() : nullptr};
  }
  std::vector<const std::vector<T>*> all() const {
    return {&gate, &selection, &image, &text, &image_clip, &text_clip};
  }
};

template <class T>
void expect_equal_to_cpu() {
  std::mt19937 random(1);
  for (const int64_t rows : {1, 4, 7}) {
    for (const int64_t dims : {1, 31, 32, 100}) {
      Given<T> given(rows, dims, random);
      auto query = unwritten<T>(rows * dims), share = unwritten<T>(rows);
      auto expected_query = query, expected_share = share;
      ASSERT_EQ(launch_gated_fusion(given.in, query.data(), share.data(), nullptr), nullptr);
      gated_fusion_cpu(given.in, expected_query.data(), expected_share.data());
      expect_close(query, expected_query, kRounding<T>);
      expect_close(share, expected_share, kRounding<T>);
      for (const bool clips : {false, true}) {
        Gradients<T> found(rows, dims, clips), expected(rows, dims, clips);
        const char* error =
            launch_gated_fusion_backward(given.in, given.grad.data(), found.out(), nullptr);
        ASSERT_EQ(error, nullptr);
        gated_fusion_backward_cpu(given.in, given.grad.data(), expected.out());
        for (size_t i = 0; i < found.all().size(); ++i) {
          expect_close(*found.all()[i], *expected.all()[i], kRounding<T>);
        }
      }
    }
  }
}

TEST(EmulatedCuda, GatedFusionFloat) { expect_equal_to_cpu<float>(); }
TEST(EmulatedCuda, GatedFusionDouble) { expect_equal_to_cpu<double>(); }
TEST(EmulatedCuda, GatedFusionBFloat16) { expect_equal_to_cpu<BFloat16>(); }

}  // namespace
}  // namespace placket
