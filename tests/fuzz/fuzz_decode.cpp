// libFuzzer target: decode_bytes.

#include "checked_decode.h"

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  placket::fuzz::Heap::watch();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace placket;
  // Large images that are allowed are decoded as small ones are, and cost the time of thousands.
  constexpr int64_t kMostPixels = 1 << 18;
  const auto claimed = fuzz::claimed_size(bytes, size);
  if (claimed && claimed->pixels() > kMostPixels && claimed->pixels() <= kMaxPixels) return -1;
  for (const Orientation orientation : {Orientation::kApply, Orientation::kIgnore}) {
    fuzz::checked_decode(bytes, size, orientation);
  }
  return 0;
}
