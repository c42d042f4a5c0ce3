// For tests of the GPU primitives: any callable as a kernel of one block, and the demand that one dies with certain
// words.
#pragma once

#include "csrc/cuda/gpu/gpu.h"
#include "testing.h"

namespace attfc::testing {

// A kernel is any callable here: one block of whole warps runs it.
struct Call {
  const std::function<void()>* body;
};
inline void call_kernel(const Call call) { (*call.body)(); }

inline void run(unsigned threads, size_t shared_bytes, const std::function<void()>& body, uint64_t seed = 0) {
  gpu::host::options.seed = seed;
  const char* error = gpu::launch(call_kernel, gpu::Grid{1, 1}, threads, shared_bytes, nullptr, Call{&body});
  CHECK(error == nullptr, "%s", error);
}

// Runs `body` in a process of its own; it must fail and say `words`.
inline void check_dies(const char* words, const std::function<void()>& body) {
  int ends[2];
  CHECK(pipe(ends) == 0, "no pipe");
  const bool survived = succeeds([&] {
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    body();
  });
  close(ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  CHECK(!survived, "survived; expected to die saying \"%s\"", words);
  CHECK(said.find(words) != std::string::npos, "died saying \"%s\", expected \"%s\"", said.c_str(), words);
}

}  // namespace attfc::testing
