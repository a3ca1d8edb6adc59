#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace placket {

// "name[,key=value...]", taken apart. Each question names a key, so that what was never asked for
// is an unknown key; errors are ValueError.
class Description {
 public:
  // `kind` ("trunk", "head") opens the messages.
  Description(const char* kind, std::string text);

  const std::string& name() const { return name_; }
  int64_t integer(const std::string& key, int64_t fallback, int64_t minimum);
  // "3/4/2": a list, which must be given.
  std::vector<int64_t> integers(const std::string& key, int64_t minimum);
  double number(const std::string& key, double fallback, double minimum, double maximum);
  bool boolean(const std::string& key, bool fallback);
  std::string choice(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& choices);
  void refuse_unknown_keys() const;

  // Throws "<kind>: <what> must <condition>, got <value> in '<text>'".
  [[noreturn]] void fail(const std::string& what, const std::string& condition,
                         const std::string& value) const;

 private:
  const std::string* find(const std::string& key);

  const char* kind_;
  std::string text_;
  std::string name_;
  std::vector<std::pair<std::string, std::string>> given_;
  std::vector<std::string> asked_;
};

// "a, b, c", as the messages list what is known.
std::string join(const std::vector<std::string>& words);

}  // namespace placket
