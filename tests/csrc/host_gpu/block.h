// Host runs of kernels, part 2: a block of CUDA threads, which of them runs next, and where they meet.
//
// Threads switch only where they wait: at a warp operation (until every lane has come) and at a block barrier. Seed 0
// runs warps round robin. Every other seed draws which warp goes on, as far as it gets, and redraws now and then, an
// order that exposes missing barriers; it also draws the order of blocks and whether a cp.async lands at once or late.
#pragma once

#include <deque>
#include <vector>

#include "fiber.h"
#include "shared.h"

namespace attfc::gpu::host {

// Set by a test before a launch.
struct Options {
  uint64_t seed = 0;
  size_t shared_limit = size_t{227} << 10;  // bytes a block may ask for
};
inline Options options;

// Counted over all launches until a test resets it.
struct Counters {
  long long mma = 0, ldmatrix = 0, block_barriers = 0, shared_accesses = 0, bank_conflicts = 0, launches = 0,
            blocks = 0;
  // cp.async that landed late, and the mma of their own warps between issue and landing: what a copy was hidden behind.
  long long late_copies = 0, mma_behind_copies = 0;
  long long tile_copies = 0, wgmma = 0;  // a warp's share each
};
inline Counters counters;

inline uint64_t random_state = 0;
inline uint32_t random_below(uint32_t bound) {  // splitmix64
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32) % bound;
}

struct PendingCopy {
  char* shared;
  const char* global;  // null: zeros
  int bytes, group;
  long long warp_mma;  // of its warp when it was issued
};

// A lane at a warp operation: what it came for, and where its arguments are.
struct Meeting {
  const char* operation;
  unsigned line;
  void* arguments;
};

enum class State { kRunnable, kAtWarpOperation, kAtBarrier, kWaits, kDone };  // kWaits: alone, see sm90.h

struct Thread {
  Context context;
  unsigned index = 0;
  State state = State::kDone;
  Meeting meeting = {};
  std::deque<PendingCopy> copies;
  int open_group = 0;
};

struct Warp {
  uint32_t runnable = 0, arrived = 0, done = 0;
  long long mma = 0;
  BankLog bank_log;
};

struct Block {
  unsigned x = 0, y = 0;
  unsigned threads_left = 0, at_barrier = 0, barrier_line = 0, barrier_phase = 0;
  char barrier_points[2] = {};  // alternate, so that a late waiter does not acquire the next phase
  Arena* arena = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Context scheduler;
  Thread* current = nullptr;
  void (*run_kernel)(const void*) = nullptr;
  const void* launch_arguments = nullptr;
  char* launch_end = nullptr;
};
inline Block* block = nullptr;

// What goes on beside the threads, where a kernel uses it (sm90.h): at a block's start, while it runs (`must`: no
// thread can go on; true: something was done) and at its end.
struct Asynchronous {
  void (*begin)();
  bool (*advance)(bool must);
  void (*end)();
};
inline Asynchronous asynchronous = {};

ATTFC_UNSEEN inline Thread& self() { return *block->current; }
ATTFC_UNSEEN inline Warp& own_warp() { return block->warps[self().index / kWarpSize]; }

[[noreturn]] inline void fail_deadlock() {
  for (const Thread& thread : block->threads) {
    if (thread.state == State::kDone || (thread.index % kWarpSize != 0 && thread.state == State::kAtBarrier)) continue;
    std::fprintf(stderr, "  warp %u lane %u waits at %s, line %u\n", thread.index / kWarpSize, thread.index % kWarpSize,
                 thread.state == State::kAtBarrier ? "sync_block" : thread.meeting.operation,
                 thread.state == State::kAtBarrier ? block->barrier_line : thread.meeting.line);
  }
  fail("deadlock: no thread of block (%u, %u) can go on", block->x, block->y);
}

// Who runs next: a runnable lane of the same warp (if the thread wants to stay there), or else the scheduler.
inline Context& choose_next(bool stay_in_warp) {
  const Thread& me = self();
  const uint32_t runnable = own_warp().runnable;
  const unsigned lane = me.index % kWarpSize;
  if (!stay_in_warp || runnable == 0) return block->scheduler;
  const uint32_t later = lane == 31 ? 0 : runnable >> (lane + 1) << (lane + 1);
  const unsigned chosen = static_cast<unsigned>(__builtin_ctz(later != 0 ? later : runnable));
  block->current = &block->threads[me.index / kWarpSize * kWarpSize + chosen];
  return block->current->context;
}

// Returns when this thread is chosen again.
inline void yield_to_next(bool stay_in_warp) {
  Thread& me = self();
  Context& next = choose_next(stay_in_warp);
  if (&next != &me.context) switch_context(me.context, next);
}

// The meeting of a full warp. Each lane brings `arguments`; the last to come does work(arguments of lane 0 .. 31).
template <class Arguments, class Work>
void meet(const char* operation, unsigned line, Arguments& arguments, Work work) {
  const Quiet quiet;
  Thread& me = self();
  Warp& warp = own_warp();
  const unsigned lane = me.index % kWarpSize;
  me.meeting = {operation, line, &arguments};
  if (warp.done != 0) fail("%s, line %u: a lane of warp %u has left the kernel", operation, line, me.index / kWarpSize);
  Thread* lanes = &block->threads[me.index / kWarpSize * kWarpSize];
  for (uint32_t others = warp.arrived; others != 0; others &= others - 1) {
    const Meeting& other = lanes[__builtin_ctz(others)].meeting;
    if (other.operation != operation || other.line != line) {
      fail("divergent warp %u: lane %u at %s, line %u; lane %d at %s, line %u", me.index / kWarpSize, lane, operation,
           line, __builtin_ctz(others), other.operation, other.line);
    }
    break;  // the first to come stands for all
  }
  warp.arrived |= 1u << lane;
  if (warp.arrived != 0xffffffffu) {
    me.state = State::kAtWarpOperation;
    warp.runnable &= ~(1u << lane);
    yield_to_next(true);
    return;
  }
  Arguments* all[kWarpSize];
  for (int other = 0; other < kWarpSize; ++other) {
    all[other] = static_cast<Arguments*>(lanes[other].meeting.arguments);
    lanes[other].state = State::kRunnable;
  }
  work(all);
  warp.arrived = 0;
  warp.runnable = 0xffffffffu;
  if (options.seed != 0 && random_below(64) == 0) yield_to_next(false);
}

ATTFC_UNSEEN inline void meet_block(unsigned line) {
  Thread& me = self();
  char* point = &block->barrier_points[block->barrier_phase & 1];
  happens_before(point);
  {
    const Quiet quiet;
    Warp& warp = own_warp();
    if (block->threads_left != block->threads.size()) fail("sync_block, line %u: a thread has left the kernel", line);
    if (warp.arrived != 0) {
      fail("divergent warp %u: a lane at sync_block, line %u, others at a warp operation", me.index / kWarpSize, line);
    }
    if (block->at_barrier != 0 && block->barrier_line != line) {
      fail("divergent block: sync_block at line %u and at line %u", block->barrier_line, line);
    }
    block->barrier_line = line;
    if (++block->at_barrier == block->threads.size()) {
      ++counters.block_barriers;
      ++block->barrier_phase;
      block->at_barrier = 0;
      for (Thread& thread : block->threads) thread.state = State::kRunnable;
      for (Warp& each : block->warps) each.runnable = 0xffffffffu;
      yield_to_next(false);
    } else {
      me.state = State::kAtBarrier;
      warp.runnable &= ~(1u << (me.index % kWarpSize));
      yield_to_next(true);
    }
  }
  happens_after(point);
}

// A fiber's life: one CUDA thread.
ATTFC_UNSEEN inline void fiber_main() {
  arrived(block->scheduler);
  block->run_kernel(block->launch_arguments);
  Thread& me = self();
  if (!me.copies.empty()) fail("thread %u left the kernel with cp.async under way", me.index);
  happens_before(block->launch_end);
  Context* next;
  {
    const Quiet quiet;
    Warp& warp = own_warp();
    if (warp.arrived != 0) fail("lane %u left the kernel while others wait", me.index % kWarpSize);
    me.state = State::kDone;
    warp.runnable &= ~(1u << (me.index % kWarpSize));
    warp.done |= 1u << (me.index % kWarpSize);
    --block->threads_left;
    if (block->at_barrier != 0)
      fail("a thread left the kernel; others wait at sync_block, line %u", block->barrier_line);
    next = &choose_next(true);
  }
  switch_context(me.context, *next);
  fail("a finished thread was resumed");
}

// Runs all threads of the current block to their end.
inline void run_threads() {
  unsigned turn = 0;
  while (block->threads_left != 0) {
    const unsigned warps = static_cast<unsigned>(block->warps.size());
    if (options.seed != 0) turn = random_below(warps);
    unsigned tried = 0;
    while (tried < warps && block->warps[turn % warps].runnable == 0) ++turn, ++tried;
    if (tried == warps) {
      if (asynchronous.advance != nullptr && asynchronous.advance(true)) continue;
      fail_deadlock();
    }
    const Warp& warp = block->warps[turn % warps];
    unsigned lane = static_cast<unsigned>(__builtin_ctz(warp.runnable));
    if (options.seed % 2 == 1) lane = 31 - static_cast<unsigned>(__builtin_clz(warp.runnable));
    block->current = &block->threads[turn % warps * kWarpSize + lane];
    switch_context(block->scheduler, block->current->context);
  }
}

}  // namespace attfc::gpu::host
