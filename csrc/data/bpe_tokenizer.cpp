#include "data/bpe_tokenizer.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <unordered_map>
#include <utility>

#include "base/parallel.h"
#include "data/unicode_classes.h"

namespace placket {
namespace {

constexpr int32_t kNone = -1;
constexpr int32_t kBytes = 256;
constexpr std::string_view kWordEnd = "</w>";
constexpr std::string_view kStart = "<start_of_text>", kEnd = "<end_of_text>";
constexpr std::array<std::string_view, 7> kContractions = {"'s", "'t",  "'re", "'ve",
                                                           "'m", "'ll", "'d"};
constexpr std::string_view kLongS = "\u017F";
// Where case is ignored this mark is the letter iota, so that open_clip's expression holds it
// neither for a letter nor for what is none, and passes over it.
constexpr char32_t kIotaBelow = 0x345;

struct Char {
  size_t bytes;
  CharClass char_class;
};

// The first character of a text that has one.
Char first_char(std::string_view text) {
  const auto byte = [&](size_t i) { return uint8_t(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, char_class(lead)};
  const size_t length = lead < 0xC2 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 1;
  if (length == 1 || length > text.size()) return {1, CharClass::kOther};
  char32_t point = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {1, CharClass::kOther};
    point = point << 6 | (byte(i) & 0x3F);
  }
  constexpr std::array<char32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  const bool is_char = point >= kLeast[length] && point <= 0x10FFFF && (point & ~0x7FFu) != 0xD800;
  if (!is_char) return {1, CharClass::kOther};
  return {length, point == kIotaBelow ? CharClass::kSpace : char_class(point)};
}

// The bytes at the beginning of a text that are a fixed word, 0 where it begins with another.
size_t match(std::string_view text, std::string_view fixed) {
  size_t at = 0;
  for (const char wanted : fixed) {
    if (at < text.size() && text[at] == wanted) {
      ++at;
    } else if (wanted == 's' && text.substr(at).starts_with(kLongS)) {
      at += kLongS.size();
    } else {
      return 0;
    }
  }
  return at;
}

// The bytes of the first word of a text that begins with one.
size_t word_length(std::string_view text, Char first) {
  if (text[0] == '<') {
    for (const std::string_view fixed : {kStart, kEnd}) {
      if (const size_t length = match(text, fixed)) return length;
    }
  } else if (text[0] == '\'') {
    for (const std::string_view fixed : kContractions) {
      if (const size_t length = match(text, fixed)) return length;
    }
  }
  size_t length = first.bytes;
  if (first.char_class == CharClass::kNumber) return length;
  while (length < text.size()) {
    const Char next = first_char(text.substr(length));
    if (next.char_class != first.char_class) break;
    length += next.bytes;
  }
  return length;
}

// The bytes in the order of their ids: those that Latin-1 prints, then the others.
std::array<uint8_t, kBytes> bytes_by_id() {
  std::array<uint8_t, kBytes> bytes;
  const auto is_printed = [](int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
  };
  for (int b = 0; b < kBytes; ++b) bytes[size_t(b)] = uint8_t(b);
  std::stable_partition(bytes.begin(), bytes.end(), is_printed);
  return bytes;
}

// What the vocabulary writes for the byte of an id, in UTF-8: itself where Latin-1 prints it, else
// characters from U+0100 on.
std::string written(int32_t id, uint8_t byte) {
  constexpr int32_t kPrinted = 188;
  const int32_t point = id < kPrinted ? int32_t(byte) : 0x100 + id - kPrinted;
  if (point < 0x80) return {char(point)};
  return {char(0xC0 | point >> 6), char(0x80 | (point & 0x3F))};
}

}  // namespace

// What the encoding of one text after another works on.
struct BpeTokenizer::Scratch {
  std::vector<int32_t> ids;  // of the text

  // Words that were met, so that those of many sentences are merged once. They lie in the texts.
  std::unordered_map<std::string_view, std::vector<int32_t>> words;
  static constexpr size_t kMostWords = 1 << 16;

  // Of the word: its tokens, a list of those that are left, by the places of their first bytes.
  std::vector<int32_t> tokens, next, previous;
  std::vector<int32_t> merges;  // what each token becomes with the next, kNone where nothing
  std::vector<uint64_t> heap;   // merge << 32 | place: the earliest merge first, from the left
};

BpeTokenizer::BpeTokenizer(std::string_view merges) {
  const std::array<uint8_t, kBytes> bytes = bytes_by_id();
  std::unordered_map<std::string, int32_t> ids;
  for (const bool ends_word : {false, true}) {
    for (int32_t i = 0; i < kBytes; ++i) {
      const uint8_t byte = bytes[size_t(i)];
      if (!ends_word) byte_ids_[byte] = i;
      std::string token = written(i, byte);
      if (ends_word) token += kWordEnd;
      ids.emplace(std::move(token), int32_t(ids.size()));
      tokens_.push_back({{char(byte)}, ends_word});
    }
  }
  const auto lines = size_t(std::count(merges.begin(), merges.end(), '\n')) + 1;
  pairs_.resize(std::bit_ceil(2 * lines + 1));
  for (size_t line = 1; !merges.empty(); ++line) {
    const std::string_view text = merges.substr(0, merges.find('\n'));
    merges.remove_prefix(std::min(text.size() + 1, merges.size()));
    const size_t space = std::min(text.find(' '), text.size());
    const std::string left(text.substr(0, space));
    const std::string right(text.substr(std::min(space + 1, text.size())));
    const auto l = ids.find(left), r = ids.find(right);
    TORCH_CHECK_VALUE(l != ids.end() && r != ids.end(), "BpeTokenizer: merge ", line,
                      " must be two tokens that are there before, got '", text, "'");
    const auto [merged, is_new] = ids.emplace(left + right, int32_t(ids.size()));
    TORCH_CHECK_VALUE(is_new, "BpeTokenizer: merge ", line, " must give a token of its own, got '",
                      text, "', which id ", merged->second, " is already");
    add_merge(l->second, r->second);
  }
  tokens_.push_back({std::string(kStart), false});
  tokens_.push_back({std::string(kEnd), false});
}

void BpeTokenizer::add_merge(int32_t left, int32_t right) {
  const Token &first = tokens_[size_t(left)], &second = tokens_[size_t(right)];
  pairs_[place(left, right)] = {left, right, int32_t(tokens_.size())};
  tokens_.push_back({first.bytes + second.bytes, second.ends_word});
}

size_t BpeTokenizer::place(int32_t left, int32_t right) const {
  const uint64_t both = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  const size_t mask = pairs_.size() - 1;
  size_t place = size_t(both * 0x9E3779B97F4A7C15u >> 32) & mask;
  while (pairs_[place].merged != kNone &&
         (pairs_[place].left != left || pairs_[place].right != right)) {
    place = (place + 1) & mask;
  }
  return place;
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, size_t most) const {
  Scratch scratch;
  encode(text, most, scratch);
  return std::move(scratch.ids);
}

void BpeTokenizer::encode(std::string_view text, size_t most, Scratch& scratch) const {
  TORCH_CHECK_VALUE(text.size() <= size_t(std::numeric_limits<int32_t>::max()),
                    "BpeTokenizer: text must have less than 2 GiB, got ", text.size(), " bytes");
  scratch.ids.clear();
  while (!text.empty() && scratch.ids.size() < most) {
    const Char first = first_char(text);
    if (first.char_class == CharClass::kSpace) {
      text.remove_prefix(first.bytes);
      continue;
    }
    const std::string_view word = text.substr(0, word_length(text, first));
    text.remove_prefix(word.size());
    if (word == kStart) {
      scratch.ids.push_back(start());
    } else if (word == kEnd) {
      scratch.ids.push_back(end());
    } else {
      if (scratch.words.size() == Scratch::kMostWords) scratch.words.clear();
      const auto [known, is_new] = scratch.words.try_emplace(word);
      if (is_new) encode_word(word, scratch, known->second);
      scratch.ids.insert(scratch.ids.end(), known->second.begin(), known->second.end());
    }
  }
  scratch.ids.resize(std::min(scratch.ids.size(), most));
}

// A merge makes tokens whose own merges come later in the order, so the heap never has to go back,
// and what it holds of one merge is met from left to right.
void BpeTokenizer::encode_word(std::string_view word, Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  auto& tokens = scratch.tokens;
  auto& next = scratch.next;
  auto& previous = scratch.previous;
  auto& merges = scratch.merges;
  auto& heap = scratch.heap;
  const auto length = int32_t(word.size());
  tokens.resize(word.size());
  next.resize(word.size());
  previous.resize(word.size());
  merges.resize(word.size());
  heap.clear();
  for (int32_t i = 0; i < length; ++i) {
    tokens[size_t(i)] = byte_ids_[uint8_t(word[size_t(i)])] + (i + 1 == length ? kBytes : 0);
    next[size_t(i)] = i + 1;
    previous[size_t(i)] = i - 1;
  }
  const auto find_merge = [&](int32_t i) {
    const int32_t after = next[size_t(i)];
    const int32_t found =
        after == length ? kNone : merged(tokens[size_t(i)], tokens[size_t(after)]);
    merges[size_t(i)] = found;
    if (found != kNone) heap.push_back(uint64_t(found) << 32 | uint32_t(i));
    return found != kNone;
  };
  const auto is_later = std::greater<uint64_t>();
  for (int32_t i = 0; i < length; ++i) find_merge(i);
  std::make_heap(heap.begin(), heap.end(), is_later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), is_later);
    const auto token = int32_t(heap.back() >> 32);
    const auto i = int32_t(heap.back() & 0xFFFFFFFFu);
    heap.pop_back();
    if (merges[size_t(i)] != token) continue;  // a neighbour was merged away meanwhile
    const int32_t gone = next[size_t(i)], after = next[size_t(gone)], before = previous[size_t(i)];
    tokens[size_t(i)] = token;
    merges[size_t(gone)] = kNone;
    next[size_t(i)] = after;
    if (after != length) previous[size_t(after)] = i;
    if (find_merge(i)) std::push_heap(heap.begin(), heap.end(), is_later);
    if (before >= 0 && find_merge(before)) std::push_heap(heap.begin(), heap.end(), is_later);
  }
  for (int32_t i = 0; i < length; i = next[size_t(i)]) ids.push_back(tokens[size_t(i)]);
}

at::Tensor BpeTokenizer::encode_rows(std::span<const std::string_view> texts,
                                     int64_t length) const {
  TORCH_CHECK_VALUE(length >= 1, "BpeTokenizer: length must be at least 1, got ", length);
  const auto count = int64_t(texts.size());
  at::Tensor rows = at::zeros({count, length}, at::kLong);
  auto* row = rows.mutable_data_ptr<int64_t>();
  constexpr int64_t kGrain = 16;
  parallel_for(0, count, kGrain, [&](int64_t first, int64_t last) {
    Scratch scratch;
    for (int64_t i = first; i < last; ++i) {
      encode(texts[size_t(i)], size_t(std::max<int64_t>(length - 2, 0)), scratch);
      int64_t* at = row + i * length;
      if (length > 1) *at++ = start();
      at = std::copy(scratch.ids.begin(), scratch.ids.end(), at);
      *at = end();
    }
  });
  return rows;
}

std::string BpeTokenizer::decode(std::span<const int64_t> ids) const {
  std::string text;
  for (const int64_t id : ids) {
    TORCH_CHECK_INDEX(id >= 0 && id < size(), "decode: id must be in [0, ", size(), "), got ", id);
    const Token& token = tokens_[size_t(id)];
    text += token.bytes;
    if (token.ends_word) text += ' ';
  }
  return text;
}

}  // namespace placket
