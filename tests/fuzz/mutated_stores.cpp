// usage: mutated_stores COUNT FOLDER
//
// Writes a store of each kind into FOLDER, then reads COUNT damaged copies and requires of each
// what checked_parse and checked_resume do. The mutants are a function of their number. One that
// fails is kept as mutant-N.store in the working folder. Prints what became of them as JSON.

#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "byte_mutator.h"
#include "checked_store.h"

namespace placket::fuzz {
namespace {

constexpr uint32_t kRandomMutant = 1001;  // a RandomPurpose of this program

class StoreMutator : public ByteMutator {
 public:
  using ByteMutator::ByteMutator;

  static constexpr int kKinds = 8;

  void apply(int kind) {
    switch (kind) {
      case 0:
        return truncate();
      case 1:
        return flip_bits();
      case 2:
        return overwrite_run();
      case 3:
        return remove_run();
      case 4:
        return duplicate_run();
      case 5:
        return change_number(end(), kStoreEnd / 8);  // of the footer
      case 6:
        return change_number(kStoreEnd, end() / 8);  // of a record or the index
      default:
        return change_number(0, kStoreEnd / 8);  // of the header
    }
  }

  void repair() { repair_checksums(bytes_.data(), bytes_.size()); }

 private:
  size_t end() const { return bytes_.size() < kStoreEnd ? 0 : bytes_.size() - kStoreEnd; }

  // One of `count` numbers of 8 bytes, or half of it.
  void change_number(size_t begin, size_t count) {
    const size_t at = begin + 8 * below(count);
    if (at + 8 > bytes_.size()) return;
    uint64_t number;
    std::memcpy(&number, &bytes_[at], sizeof number);
    const uint64_t any = uint64_t{random_.next()} << 32 | random_.next();
    number = one_of<uint64_t>({0, 1, 2, 3, 8, 64, bytes_.size(), bytes_.size() - 64, number + 1,
                               number - 1, number + 8, number - 8, number * 2, ~uint64_t(0),
                               ~uint64_t(7), uint64_t(1) << 63, 0xffffffff, 0x10000000, any});
    std::memcpy(&bytes_[at], &number, one_of<size_t>({8, 8, 4}));
  }
};

std::vector<Bytes> write_seeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::vector<Bytes> seeds;
  for (uint32_t kind = 0; kind < 3; ++kind) {
    for (const uint32_t records : {0u, 1u, 5u}) {
      const std::string path = folder / (std::to_string(kind) + "-" + std::to_string(records));
      StoreWriter writer(path, StoreKind(kind), {1, 2, 3});
      for (uint32_t i = 0; i < records; ++i) {
        StoreRecord about;
        about.height = about.source_height = i + 1;
        about.width = about.source_width = 2 * i + 1;
        writer.append(Bytes(3 * about.height * about.width, uint8_t(i)).data(),
                      3 * about.height * about.width, about);
      }
      writer.finish(std::string(7 * records, 'm'));
      seeds.push_back(read_seed(path));
      require(checked_parse(seeds.back().data(), seeds.back().size()), "a seed is whole");
    }
  }
  return seeds;
}

int run(int64_t count, const std::string& folder) {
  const std::vector<Bytes> seeds = write_seeds(folder);
  const ScratchFolder scratch;
  Mutant& current = Mutant::current();
  const auto start = std::chrono::steady_clock::now();
  int64_t read = 0, resumed = 0, kept = 0;
  for (current.number = 1; current.number <= count; ++current.number) {
    RandomStream random(0, kRandomMutant, uint64_t(current.number));
    StoreMutator mutator(seeds[random.below(uint32_t(seeds.size()))], random);
    mutator.apply(int(current.number % StoreMutator::kKinds));
    while (random.below(3) == 0) mutator.apply(int(random.below(StoreMutator::kKinds)));
    if (random.below(4) != 0) mutator.repair();
    current.bytes = mutator.take();
    read += checked_parse(current.bytes.data(), current.bytes.size()) ? 1 : 0;
    const int64_t found =
        checked_resume(current.bytes.data(), current.bytes.size(), scratch.file("set.store"));
    resumed += found >= 0 ? 1 : 0;
    kept += std::max<int64_t>(found, 0);
  }
  current.number = -1;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::cout << "{\"mutants\": " << count << ", \"read\": " << read
            << ", \"refused\": " << count - read << ", \"resumed\": " << resumed
            << ", \"records_kept\": " << kept << ", \"seconds\": " << seconds.count() << "}\n";
  return 0;
}

}  // namespace
}  // namespace placket::fuzz

int main(int argc, char** argv) {
  using namespace placket::fuzz;
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " COUNT FOLDER\n";
    return 2;
  }
  Mutant::keep_failures("store");
  return run(std::stoll(argv[1]), argv[2]);
}
