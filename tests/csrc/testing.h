// A small test runner for the host-run kernels: each case runs in a process of its own, because what the host run and
// the sanitizers find ends the process.
//
//   program                  runs every case
//   program NAME ..          runs the cases whose name contains one of the NAMEs
// Prints each failure and, at the end, "N passed, M failed".
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace attfc::testing {

inline std::vector<std::pair<std::string, std::function<void()>>>& cases() {
  static std::vector<std::pair<std::string, std::function<void()>>> all;
  return all;
}

inline void add_case(std::string name, std::function<void()> body) {
  cases().emplace_back(std::move(name), std::move(body));
}

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fputc('\n', stderr);                                            \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

// True when the process that ran `body` ended with exit code 0.
inline bool succeeds(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    return false;
  }
  if (child == 0) {
    body();
    std::exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

inline int run_cases(int argc, char** argv) {
  int passed = 0, failed = 0;
  for (const auto& [name, body] : cases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || name.find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    if (succeeds(body)) {
      ++passed;
    } else {
      ++failed;
      std::printf("FAILED %s\n", name.c_str());
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace attfc::testing
