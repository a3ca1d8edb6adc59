#include "models/description.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <system_error>

#include "base/checks.h"

namespace placket {

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (;;) {
    const size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return parts;
    begin = end + 1;
  }
}

template <class T>
bool parse(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

Description::Description(const char* kind, std::string text) : kind_(kind), text_(std::move(text)) {
  const std::vector<std::string> parts = split(text_, ',');
  name_ = parts.front();
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    if (equals == std::string::npos || equals == 0) {
      fail("setting", "have the form key=value", "'" + parts[i] + "'");
    }
    const std::string key = parts[i].substr(0, equals);
    for (const auto& [known, value] : given_) {
      if (known == key) fail("setting", "be given once", "a second '" + parts[i] + "'");
    }
    given_.emplace_back(key, parts[i].substr(equals + 1));
  }
}

const std::string* Description::find(const std::string& key) {
  asked_.push_back(key);
  for (const auto& [given, value] : given_) {
    if (given == key) return &value;
  }
  return nullptr;
}

int64_t Description::integer(const std::string& key, int64_t fallback, int64_t minimum) {
  const std::string* text = find(key);
  int64_t value = fallback;
  if ((text != nullptr && !parse(*text, value)) || value < minimum) {
    fail(key, "be an integer of at least " + std::to_string(minimum),
         text != nullptr ? "'" + *text + "'" : "nothing");
  }
  return value;
}

std::vector<int64_t> Description::integers(const std::string& key, int64_t minimum) {
  const std::string* text = find(key);
  std::vector<int64_t> values;
  bool valid = text != nullptr;
  if (valid) {
    for (const std::string& part : split(*text, '/')) {
      valid = valid && parse(part, values.emplace_back()) && values.back() >= minimum;
    }
  }
  if (!valid) {
    fail(key, "be integers of at least " + std::to_string(minimum) + " with / between them",
         text != nullptr ? "'" + *text + "'" : "nothing");
  }
  return values;
}

double Description::number(const std::string& key, double fallback, double minimum,
                           double maximum) {
  const std::string* text = find(key);
  if (text == nullptr) return fallback;
  double value = 0;
  if (!parse(*text, value) || !(value >= minimum && value <= maximum)) {
    std::ostringstream condition;
    condition << "be a number from " << minimum << " to " << maximum;
    fail(key, condition.str(), "'" + *text + "'");
  }
  return value;
}

std::string Description::choice(const std::string& key, const std::string& fallback,
                                const std::vector<std::string>& choices) {
  const std::string* text = find(key);
  if (text == nullptr) return fallback;
  if (std::find(choices.begin(), choices.end(), *text) == choices.end()) {
    fail(key, "be one of " + join(choices), "'" + *text + "'");
  }
  return *text;
}

bool Description::boolean(const std::string& key, bool fallback) {
  return choice(key, fallback ? "true" : "false", {"true", "false"}) == "true";
}

std::string Description::rest() {
  std::string text = name_;
  for (const auto& [key, value] : given_) {
    if (std::find(asked_.begin(), asked_.end(), key) != asked_.end()) continue;
    text.append(",").append(key).append("=").append(value);
    asked_.push_back(key);
  }
  return text;
}

void Description::refuse_unknown_keys() const {
  for (const auto& [key, value] : given_) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
      fail("setting", "be one of " + join(asked_), "'" + key + "'");
    }
  }
}

void Description::fail(const std::string& what, const std::string& condition,
                       const std::string& value) const {
  TORCH_CHECK_VALUE(false, kind_, ": ", what, " must ", condition, ", got ", value, " in '", text_,
                    "'");
  std::abort();
}

}  // namespace placket
