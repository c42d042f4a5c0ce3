// Host runs of kernels, part 1: one fiber (stack and saved registers) per CUDA thread, and what the sanitizers need to
// know when one is switched to. x86-64, System V ABI.
#pragma once

#include <sys/mman.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace attfc::gpu::host {

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fputs("gpu host run: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

// The simulation's own memory accesses are no accesses of the kernel: ThreadSanitizer ignores them within a Quiet
// scope.
struct Quiet {
#if defined(__SANITIZE_THREAD__)
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Quiet() {}
#endif
  Quiet(const Quiet&) = delete;
};

// Too small for a Quiet scope, or not a scope: not instrumented at all.
#define ATTFC_UNSEEN __attribute__((no_sanitize("thread")))

// The only orderings that ThreadSanitizer is told about: barriers, and the end of a launch.
inline void happens_before([[maybe_unused]] void* point) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(point);
#endif
}
inline void happens_after([[maybe_unused]] void* point) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(point);
#endif
}

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer remembers who used an address, not that a stack or an arena has changed hands: no reuse within a
// launch.
constexpr bool kReuseMemoryAcrossBlocks = false;
#else
constexpr bool kReuseMemoryAcrossBlocks = true;
#endif
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = size_t{256} << 10;
#else
constexpr size_t kStackBytes = size_t{64} << 10;
#endif
constexpr size_t kGuardBytes = 4096;

// Saves the callee-saved registers on this stack and takes up the other.
__attribute__((naked, noinline, no_sanitize("address", "thread", "undefined"))) inline void switch_stacks(
    void** /*save*/, void* /*load*/) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

// An execution context: a CUDA thread, or (stack == nullptr) the scheduler on the process's own stack.
struct Context {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* tsan_fiber = nullptr;
  void* asan_fake_stack = nullptr;
  const void* asan_bottom = nullptr;
  size_t asan_size = 0;
};

inline char* map_stack() {
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("out of memory for a fiber's stack");
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<char*>(memory) + kGuardBytes;
}

// Makes `context` start in entry(), which never returns.
inline void prepare(Context& context, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(context.stack + kStackBytes - 4096,
                              4096);  // the last entry's frame was left, not returned from
#endif
  void** top = reinterpret_cast<void**>(context.stack + kStackBytes);
  *--top = nullptr;  // entry's return address: its stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
  context.asan_bottom = context.stack;
  context.asan_size = kStackBytes;
  context.asan_fake_stack = nullptr;
#if defined(__SANITIZE_THREAD__)
  context.tsan_fiber = __tsan_create_fiber(0);
#endif
}

inline void release(Context& context) {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(context.tsan_fiber);
#endif
  context.tsan_fiber = nullptr;
}

// To be called first in an entry function. The first to arrive comes from the scheduler and learns where its stack
// lies.
inline void arrived([[maybe_unused]] Context& scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (scheduler.asan_bottom == nullptr) scheduler.asan_bottom = bottom, scheduler.asan_size = size;
#endif
}

ATTFC_UNSEEN inline void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.asan_fake_stack, to.asan_bottom, to.asan_size);
#endif
  switch_stacks(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
#endif
}

}  // namespace attfc::gpu::host
