// usage: mutated_jpegs COUNT SEED.jpg...
//
// Decodes COUNT damaged copies of JPEG files and requires of each what checked_decode does. The
// mutants are a function of their number and the seeds. One that fails is kept as mutant-N.jpg in
// the working folder. Prints what became of the mutants as JSON.

#include <algorithm>
#include <array>
#include <chrono>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "byte_mutator.h"
#include "checked_decode.h"

namespace placket::fuzz {
namespace {

constexpr uint32_t kRandomMutant = 1000;  // a RandomPurpose of this program

class JpegMutator : public ByteMutator {
 public:
  JpegMutator(const Bytes& bytes, const std::vector<Bytes>& seeds, RandomStream& random)
      : ByteMutator(bytes, random), seeds_(seeds) {}

  static constexpr int kKinds = 14;

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
        return splice();
      case 6:
        return change_marker();
      case 7:
        return change_length();
      case 8:
        return change_dimensions();
      case 9:
        return change_components();
      case 10:
        return change_table();
      case 11:
        return insert_exif();
      case 12:
        return move_segment();
      default:
        return change_restarts();
    }
  }

  // Of the first frame header, if there is one.
  void claim(uint16_t height, uint16_t width) {
    for (const Segment& segment : segments_of(bytes_.data(), bytes_.size())) {
      if (!segment.is_frame() || segment.length < 8) continue;
      put(segment.at + 5, height);
      put(segment.at + 7, width);
      return;
    }
  }

 private:
  void put(size_t at, uint16_t number) {
    if (at + 2 > bytes_.size()) return;
    bytes_[at] = uint8_t(number >> 8);
    bytes_[at + 1] = uint8_t(number);
  }

  // The head of this file and the tail of another; every other time both are cut before a segment.
  void splice() {
    const Bytes& other = seeds_[below(seeds_.size())];
    size_t head = below(bytes_.size()), tail = below(other.size());
    const auto segments = segments_of(bytes_.data(), bytes_.size());
    const auto others = segments_of(other.data(), other.size());
    if (below(2) == 0 && !segments.empty() && !others.empty()) {
      head = segments[below(segments.size())].at;
      tail = others[below(others.size())].at;
    }
    bytes_.resize(head);
    bytes_.insert(bytes_.end(), other.begin() + ptrdiff_t(tail), other.end());
  }

  // A segment for which `wanted` holds, or none.
  template <typename Wanted>
  std::optional<Segment> some_segment(const Wanted& wanted) {
    std::vector<Segment> found = segments_of(bytes_.data(), bytes_.size());
    std::erase_if(found, [&](const Segment& segment) { return !wanted(segment.marker); });
    if (found.empty()) return std::nullopt;
    return found[below(found.size())];
  }
  std::optional<Segment> some_segment() {
    return some_segment([](uint8_t) { return true; });
  }

  void change_marker() {
    const auto segment = some_segment();
    if (!segment) return;
    bytes_[segment->at + 1] = below(4) == 0 ? byte() : uint8_t(0xc0 + below(0x40));
  }

  void change_length() {
    const auto segment = some_segment();
    if (!segment) return;
    const auto near = uint16_t(segment->length + below(9) - 4);
    put(segment->at + 2, one_of<uint16_t>({0, 1, 2, 3, near, near, 0xffff, uint16_t(byte())}));
  }

  void change_dimensions() {
    const auto side = [&] {
      return one_of<uint16_t>(
          {0, 1, 2, 7, 8, 17, 60000, 0xffff, uint16_t(below(2000)), uint16_t(below(0x10000))});
    };
    const uint16_t height = side();
    claim(height, side());
  }

  // Precision, number, identifiers, sampling factors and tables of components; also of a scan.
  void change_components() {
    const auto segment = some_segment([](uint8_t marker) {
      return marker == 0xda || marker == 0xc0 || marker == 0xc1 || marker == 0xc2;
    });
    if (!segment) return;
    const size_t first = segment->marker == 0xda ? 4 : 9;
    for (size_t changes = 1 + below(3); changes > 0; --changes) {
      const size_t at = segment->at + (below(4) == 0 ? 4 : first + below(segment->length - 2));
      if (at >= bytes_.size()) return;
      const auto factors = uint8_t((1 + below(4)) << 4 | (1 + below(4)));
      bytes_[at] = one_of<uint8_t>({0, 1, 2, 3, 4, 5, 12, 0x21, 0x22, 0x41, 0x44, factors, byte()});
    }
  }

  // Quantisation, Huffman and arithmetic tables.
  void change_table() {
    const auto segment = some_segment(
        [](uint8_t marker) { return marker == 0xdb || marker == 0xc4 || marker == 0xcc; });
    if (!segment || segment->length < 3) return;
    for (size_t changes = 1 + below(4); changes > 0; --changes) {
      bytes_[segment->at + 4 + below(segment->length - 2)] =
          one_of<uint8_t>({0, 1, 2, 0x10, 0x11, 0x7f, 0x80, 0xff, byte(), byte(), byte()});
    }
  }

  // An EXIF block before all others, with offsets, counts and types that may lie.
  void insert_exif() {
    const bool little = below(2) == 0;
    Bytes block = {'E', 'x', 'i', 'f', 0, 0};
    const auto number = [&](uint32_t value, int width) {
      for (int i = 0; i < width; ++i) {
        block.push_back(uint8_t(value >> 8 * (little ? i : width - 1 - i)));
      }
    };
    block.push_back(little ? 'I' : 'M');
    block.push_back(little ? 'I' : 'M');
    number(42, 2);
    number(one_of<uint32_t>(
               {8, 8, 8, 8, 0, 4, 7, 64, 0x7fffffff, 0xfffffff0, 0xffffffff, uint32_t(below(128))}),
           4);
    const auto entries = uint32_t(below(4));
    number(one_of<uint32_t>({entries, entries, entries + 1, 0xffff}), 2);
    for (uint32_t i = 0; i < entries; ++i) {
      number(one_of<uint32_t>({0x0112, 0x0112, 0x010f, random_.next()}), 2);
      number(one_of<uint32_t>({1, 3, 4, 3, 2, uint32_t(below(16)), 0xffff}), 2);
      number(one_of<uint32_t>({1, 1, 0, 0xffffffff}), 4);
      number(one_of<uint32_t>({uint32_t(below(10)), uint32_t(below(10)), random_.next()}), 4);
    }
    if (below(3) == 0) block.resize(below(block.size() + 1));
    const size_t length = block.size() + 2 + (below(8) == 0 ? below(64) : 0);
    const std::array<uint8_t, 4> header = {0xff, 0xe1, uint8_t(length >> 8), uint8_t(length)};
    block.insert(block.begin(), header.begin(), header.end());
    bytes_.insert(bytes_.begin() + std::min<ptrdiff_t>(2, ssize_t(bytes_.size())), block.begin(),
                  block.end());
  }

  // Removes a segment, or puts a copy of it elsewhere.
  void move_segment() {
    const auto segment = some_segment(), target = some_segment();
    if (!segment || !target) return;
    const auto begin = bytes_.begin() + ptrdiff_t(segment->at);
    const Bytes copy(begin, begin + 2 + ptrdiff_t(segment->length));
    if (below(2) == 0) {
      bytes_.erase(begin, begin + ptrdiff_t(copy.size()));
    } else {
      bytes_.insert(bytes_.begin() + ptrdiff_t(target->at), copy.begin(), copy.end());
    }
  }

  // A restart interval before some segment, or another number in a restart marker.
  void change_restarts() {
    std::vector<size_t> markers;
    for (size_t at = 2; at + 2 <= bytes_.size(); ++at) {
      if (bytes_[at] == 0xff && bytes_[at + 1] >= 0xd0 && bytes_[at + 1] <= 0xd7) {
        markers.push_back(at + 1);
      }
    }
    if (!markers.empty() && below(2) == 0) {
      bytes_[markers[below(markers.size())]] = uint8_t(0xd0 + below(8));
      return;
    }
    const auto target = some_segment();
    if (!target) return;
    const auto interval = one_of<uint16_t>({0, 1, 2, 0xffff, uint16_t(below(64))});
    const std::array<uint8_t, 6> restart = {
        0xff, 0xdd, 0, 4, uint8_t(interval >> 8), uint8_t(interval)};
    bytes_.insert(bytes_.begin() + ptrdiff_t(target->at), restart.begin(), restart.end());
  }

  const std::vector<Bytes>& seeds_;
};

enum class Expected { kAny, kRefused, kTooLarge };

// Kinds of damage take turns; a third of the mutants get more than one.
Expected mutate(int64_t number, const std::vector<Bytes>& seeds, Bytes& mutant) {
  RandomStream random(0, kRandomMutant, uint64_t(number));
  const Bytes& seed = seeds[random.below(uint32_t(seeds.size()))];
  JpegMutator mutator(seed, seeds, random);
  const auto kind = int(number % (JpegMutator::kKinds + 2));
  if (kind == JpegMutator::kKinds) {
    mutator.claim(60000, 60000);
    mutant = mutator.take();
    return Expected::kTooLarge;
  }
  if (kind == JpegMutator::kKinds + 1) {
    mutator.truncate();
    mutant = mutator.take();
    return Expected::kRefused;
  }
  mutator.apply(kind);
  while (random.below(3) == 0) mutator.apply(int(random.below(JpegMutator::kKinds)));
  mutant = mutator.take();
  return Expected::kAny;
}

// The part of a cause that is the same for many mutants.
std::string kind_of(const std::string& cause) {
  return cause.substr(0, cause.find_first_of("0123456789"));
}

int run(int64_t count, const std::vector<std::string>& paths) {
  Mutant& current = Mutant::current();
  std::vector<Bytes> seeds;
  for (const std::string& path : paths) {
    seeds.push_back(read_seed(path));
    current.number = 0;
    current.bytes = seeds.back();
    const Outcome outcome =
        checked_decode(current.bytes.data(), current.bytes.size(), Orientation::kApply);
    require(outcome.decoded(), "seed is a whole JPEG file: " + path + ": " + outcome.cause);
  }

  const auto start = std::chrono::steady_clock::now();
  int64_t decoded = 0, refused = 0, too_large = 0;
  size_t heap = 0, heap_of_too_large = 0;
  std::map<std::string, int64_t> causes;
  for (current.number = 1; current.number <= count; ++current.number) {
    const Expected expected = mutate(current.number, seeds, current.bytes);
    const Orientation orientation =
        current.number % 5 == 0 ? Orientation::kIgnore : Orientation::kApply;
    const Outcome outcome = checked_decode(current.bytes.data(), current.bytes.size(), orientation);
    require(expected != Expected::kRefused || !outcome.decoded(), "a truncated file is refused");
    require(expected != Expected::kTooLarge || outcome.too_large(),
            "60,000 x 60,000 pixels are refused as too large: " + outcome.cause);
    heap = std::max(heap, outcome.heap);
    if (outcome.decoded()) {
      ++decoded;
      continue;
    }
    ++refused;
    ++causes[kind_of(outcome.cause)];
    if (outcome.too_large()) {
      ++too_large;
      heap_of_too_large = std::max(heap_of_too_large, outcome.heap);
    }
  }
  current.number = -1;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  for (const auto& [cause, times] : causes) std::cerr << times << "\t" << cause << "\n";
  std::cout << "{\"mutants\": " << count << ", \"decoded\": " << decoded
            << ", \"refused\": " << refused << ", \"causes\": " << causes.size()
            << ", \"too_large\": " << too_large << ", \"peak_heap_bytes\": " << heap
            << ", \"peak_heap_bytes_of_too_large\": " << heap_of_too_large
            << ", \"seconds\": " << seconds.count() << "}\n";
  return 0;
}

}  // namespace
}  // namespace placket::fuzz

int main(int argc, char** argv) {
  using namespace placket::fuzz;
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " COUNT SEED.jpg...\n";
    return 2;
  }
  Mutant::keep_failures("jpg");
  Heap::watch();
  return run(std::stoll(argv[1]), {argv + 2, argv + argc});
}
