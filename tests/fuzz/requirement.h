#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace placket::fuzz {

// A failure ends the program as a sanitizer's finding does, with a stack.
inline void require(bool good, const std::string& what) {
  if (good) return;
  std::fprintf(stderr, "requirement failed: %s\n", what.c_str());
  std::abort();
}

}  // namespace placket::fuzz

// NOLINTBEGIN(bugprone-reserved-identifier)
// Read by the sanitizers when the program starts. A program includes this once.
extern "C" const char* __asan_default_options() {
  return "handle_abort=1:detect_leaks=1:detect_stack_use_after_return=1";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }
// NOLINTEND(bugprone-reserved-identifier)
