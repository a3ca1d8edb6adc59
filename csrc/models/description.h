#pragma once

#include <cstdint>
#include <map>
#include <mutex>
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
  // The name and the settings not asked for yet, a description of its own, whose reader then knows
  // which keys there are.
  std::string rest();
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

// What `make` reads from a description, once: every forward pass asks by the same few texts.
template <class T>
const T& read_once(const std::string& text, T (*make)(const std::string&)) {
  static std::mutex mutex;
  static std::map<std::string, T> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(text);
  if (found != known.end()) return found->second;
  return known.emplace(text, make(text)).first->second;
}

// "a, b, c", as the messages list what is known.
std::string join(const std::vector<std::string>& words);

}  // namespace placket
