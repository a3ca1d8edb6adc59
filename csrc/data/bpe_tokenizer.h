#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace placket {

// The byte-pair tokenizer of CLIP (Radford et al., ICML 2021) on text that is clean already: lower
// case, without entities. Its ids: the 256 bytes, the 256 bytes that end a word, one for each merge
// in order, start and end of the text.
//
// A word is "<start_of_text>" or "<end_of_text>" (which are the ids of that name: a text that
// holds one ends there for CLIP), one of 's 't 're 've 'm 'll 'd, a run of letters, one number, or
// a run of what is neither letter, number nor space (CharClass). As where a regular expression
// ignores case, a long s stands for an s in the fixed ones, and U+0345 parts words as a space does.
// Bytes that are no UTF-8 are one character each, of no class.
//
// In a word the adjacent pair of the earliest merge is merged wherever it is, from left to right,
// until there is none. A word of n bytes takes O(n log n) time and some 40 n bytes.
//
// Immutable once made, so that any number of threads may use it.
class BpeTokenizer {
 public:
  // `merges`: "left right" a line, in the alphabet that has a printable character for each byte,
  // with "</w>" at the end of a word; each of tokens that are there before. Throws ValueError.
  explicit BpeTokenizer(std::string_view merges);

  int64_t size() const { return int64_t(tokens_.size()); }
  int32_t start() const { return int32_t(tokens_.size()) - 2; }
  int32_t end() const { return int32_t(tokens_.size()) - 1; }

  // The first `most` ids of a text, without start and end.
  std::vector<int32_t> encode(std::string_view text, size_t most) const;

  // [texts, length] int64: start, the ids, end, zeros. Of a text with more ids than fit the first
  // are kept, and the last place is the end; so is the only place of a row of one. Runs on torch's
  // threads.
  at::Tensor encode_rows(std::span<const std::string_view> texts, int64_t length) const;

  // The bytes that ids stand for, a space after each word. Throws IndexError for what is no id.
  std::string decode(std::span<const int64_t> ids) const;

 private:
  struct Token {
    std::string bytes;
    bool ends_word;
  };
  struct Pair {
    int32_t left = -1, right = -1;
    int32_t merged = -1;
  };
  struct Scratch;

  void add_merge(int32_t left, int32_t right);
  size_t place(int32_t left, int32_t right) const;
  // The id that two adjacent tokens become, kNone where they stay two.
  int32_t merged(int32_t left, int32_t right) const { return pairs_[place(left, right)].merged; }
  void encode(std::string_view text, size_t most, Scratch& scratch) const;
  // Adds the ids of a word.
  void encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

  std::vector<Token> tokens_;
  std::array<int32_t, 256> byte_ids_;
  std::vector<Pair> pairs_;  // hashed with open addressing; at most half of it is used
};

}  // namespace placket
