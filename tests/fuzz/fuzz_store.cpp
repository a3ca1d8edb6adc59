// libFuzzer target: parse_store, and StoreWriter with a partial file that is there already. Most
// inputs get checksums that are right.

#include <algorithm>

#include "checked_store.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* bytes, size_t size, size_t most);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* bytes, size_t size, size_t most,
                                          unsigned int seed) {
  const size_t changed = LLVMFuzzerMutate(bytes, size, most);
  if (seed % 4 != 0) placket::fuzz::repair_checksums(bytes, changed);
  return changed;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const placket::fuzz::ScratchFolder scratch;
  placket::fuzz::checked_parse(bytes, size);
  placket::fuzz::checked_resume(bytes, size, scratch.file("set.store"));
  return 0;
}
