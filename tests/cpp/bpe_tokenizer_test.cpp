#include "data/bpe_tokenizer.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "data/unicode_classes.h"

namespace placket {
namespace {

constexpr size_t kAll = std::numeric_limits<size_t>::max();

// Where words end, by the ids of bytes that end one.
std::vector<size_t> word_ends(std::string_view text) {
  const BpeTokenizer bytes_alone("");
  std::vector<size_t> ends;
  const std::vector<int32_t> ids = bytes_alone.encode(text, kAll);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 256) ends.push_back(i + 1);
  }
  return ends;
}

TEST(BpeTokenizer, BytesThatAreNoUtf8AreOfNoClass) {
  const std::vector<std::string> damaged = {"\xff",
                                            "\x80",
                                            "\xc3",
                                            "\xc0\xaf",
                                            "\xe2\x82",
                                            "\xed\xa0\x80",
                                            "\xf0\x80\x80\x80",
                                            "\xf4\x90\x80\x80",
                                            "\xf5\x80\x80\x80"};
  for (const std::string& bytes : damaged) {
    const size_t end = 1 + bytes.size();
    // Between letters they are a word, with punctuation they are one with it.
    EXPECT_EQ(word_ends("a" + bytes + "b"), (std::vector<size_t>{1, end, end + 1}));
    EXPECT_EQ(word_ends("!" + bytes + "!"), (std::vector<size_t>{end + 1}));
    EXPECT_EQ(word_ends("!" + bytes), (std::vector<size_t>{end}));
  }
}

TEST(BpeTokenizer, EveryByteComesBack) {
  const BpeTokenizer tokenizer("a b\nab c</w>");
  std::string all;
  for (int i = 0; i < 256; ++i) all += char(i);
  std::string decoded;
  for (const char byte : all) {
    const std::vector<int32_t> ids = tokenizer.encode({&byte, 1}, kAll);
    decoded += tokenizer.decode(std::vector<int64_t>(ids.begin(), ids.end())).substr(0, 1);
  }
  // White space has no ids: five controls and the space.
  EXPECT_EQ(decoded.size(), 256u - 6);
  EXPECT_EQ(tokenizer.encode("abc", kAll), (std::vector<int32_t>{513}));
  EXPECT_EQ(tokenizer.encode("abcab", 2),
            (std::vector<int32_t>{512, tokenizer.encode("c", 1)[0] - 256}));
}

TEST(CharClass, OfAnyNumber) {
  EXPECT_EQ(char_class(U'a'), CharClass::kLetter);
  EXPECT_EQ(char_class(U'5'), CharClass::kNumber);
  EXPECT_EQ(char_class(0x3000), CharClass::kSpace);
  EXPECT_EQ(char_class(0x10FFFF), CharClass::kOther);
  EXPECT_EQ(char_class(0xFFFFFFFF), CharClass::kOther);
}

}  // namespace
}  // namespace placket
