// The host side of gpu.h: every name of device.h, done by the fibers of block.h. Included by gpu.h under g++ only.
//
// What a run shows: wrong results, missing or divergent barriers, divergent warps, races (ThreadSanitizer), overruns
// (AddressSanitizer, red zones), data used before its cp.async was waited for, too little shared memory, bank
// conflicts. What it cannot show: the hardware's rounding inside mma, weak memory orders, speed.
#pragma once

#include <cmath>
#include <cstring>
#include <deque>

#include "block.h"

#define ATTFC_DEVICE inline
#define ATTFC_UNROLL
#define ATTFC_UNROLL_BY_4
#define ATTFC_KERNEL(threads, min_blocks) void

namespace attfc::gpu {

ATTFC_UNSEEN inline unsigned thread_index() { return host::self().index; }
ATTFC_UNSEEN inline unsigned block_index_x() { return host::block->x; }
ATTFC_UNSEEN inline unsigned block_index_y() { return host::block->y; }

class SharedArena {
 public:
  template <class T>
  T* take(int count) {
    const host::Quiet quiet;
    return reinterpret_cast<T*>(
        host::block->arena->take(static_cast<size_t>(count) * sizeof(T), alignof(T), pieces_++));
  }

 private:
  int pieces_ = 0;
};

namespace host {
inline void count_access(const void* pointer, int bytes, const char* operation, unsigned line) {
  const Quiet quiet;
  block->arena->check_inside(pointer, bytes, operation, line);
  ++counters.shared_accesses;
  counters.bank_conflicts += own_warp().bank_log.add(line, self().index % kWarpSize, pointer, bytes);
}

inline void note_store(const void* pointer, int bytes) {
  const Quiet quiet;
  block->arena->note_store(pointer, bytes, self().index);
}
}  // namespace host

template <class T>
T load_shared(const T* pointer, unsigned line = __builtin_LINE()) {
  host::count_access(pointer, sizeof(T), "load_shared", line);
  return *pointer;
}
template <class T>
void store_shared(T* pointer, T value, unsigned line = __builtin_LINE()) {
  host::count_access(pointer, sizeof(T), "store_shared", line);
  host::note_store(pointer, sizeof(T));
  *pointer = value;
}

inline void sync_block(unsigned line = __builtin_LINE()) { host::meet_block(line); }

template <class T>
T shuffle_xor(T value, int lanes, unsigned line = __builtin_LINE()) {
  struct Arguments {
    T value, result;
    int lanes;
  } arguments{value, value, lanes};
  host::meet("shuffle_xor", line, arguments, [&](Arguments** all) {
    for (int lane = 0; lane < kWarpSize; ++lane) all[lane]->result = all[lane ^ all[lane]->lanes]->value;
  });
  const host::Quiet quiet;
  return arguments.result;
}

inline bool warp_any(bool predicate, unsigned line = __builtin_LINE()) {
  struct Arguments {
    bool predicate, result;
  } arguments{predicate, false};
  host::meet("warp_any", line, arguments, [](Arguments** all) {
    bool any = false;
    for (int lane = 0; lane < kWarpSize; ++lane) any = any || all[lane]->predicate;
    for (int lane = 0; lane < kWarpSize; ++lane) all[lane]->result = any;
  });
  const host::Quiet quiet;
  return arguments.result;
}

namespace host {

struct Ldmatrix {
  const void* row;
  uint16_t elements[8];
  uint32_t result[4];
};

inline void ldmatrix(const char* operation, bool transposed, const void* row, uint32_t (&r)[4], unsigned line) {
  Ldmatrix mine;
  {
    const Quiet quiet;
    block->arena->check_inside(row, 16, operation, line);
    mine.row = row;
  }
  const uint16_t* source = static_cast<const uint16_t*>(row);
  for (int i = 0; i < 8; ++i) mine.elements[i] = source[i];  // this lane's own read, as ThreadSanitizer sees it
  meet(operation, line, mine, [&](Ldmatrix** all) {
    ++counters.ldmatrix;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const void* rows[kWarpSize] = {};
      for (int i = 0; i < 8; ++i) rows[i] = all[8 * matrix + i]->row;
      counters.bank_conflicts += bank_conflicts(rows, 0xff, 16);
      for (int lane = 0; lane < kWarpSize; ++lane) {
        const int major = lane / 4, minor = 2 * (lane % 4);
        const uint32_t low =
            transposed ? all[8 * matrix + minor]->elements[major] : all[8 * matrix + major]->elements[minor];
        const uint32_t high =
            transposed ? all[8 * matrix + minor + 1]->elements[major] : all[8 * matrix + major]->elements[minor + 1];
        all[lane]->result[matrix] = low | high << 16;
      }
    }
  });
  const Quiet quiet;
  for (int matrix = 0; matrix < 4; ++matrix) r[matrix] = mine.result[matrix];
}

inline float widen_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value;
  if (exponent == 31) {
    value = mantissa != 0 ? NAN : INFINITY;
  } else {
    value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                          : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

inline uint16_t narrow_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  int exponent;
  const float fraction = std::frexp(size, &exponent);                               // [0.5, 1)
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 .. 2048; 2048 carries
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + mantissa);
}

inline uint16_t narrow_bfloat(float value) {
  if (std::isnan(value)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace host

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
inline float to_float(Float16 value) {
  static const std::vector<float> table = [] {
    std::vector<float> all(65536);
    for (int bits = 0; bits < 65536; ++bits)
      all[static_cast<size_t>(bits)] = host::widen_half(static_cast<uint16_t>(bits));
    return all;
  }();
  const host::Quiet quiet;
  return table[value.bits];
}

template <class Element>
uint32_t pack(float low, float high);
template <>
inline uint32_t pack<BFloat16>(float low, float high) {
  return host::narrow_bfloat(low) | static_cast<uint32_t>(host::narrow_bfloat(high)) << 16;
}
template <>
inline uint32_t pack<Float16>(float low, float high) {
  return host::narrow_half(low) | static_cast<uint32_t>(host::narrow_half(high)) << 16;
}

inline void ldmatrix_x4(const void* row, uint32_t (&r)[4], unsigned line = __builtin_LINE()) {
  host::ldmatrix("ldmatrix_x4", false, row, r, line);
}
inline void ldmatrix_x4_trans(const void* row, uint32_t (&r)[4], unsigned line = __builtin_LINE()) {
  host::ldmatrix("ldmatrix_x4_trans", true, row, r, line);
}

// Lane l = 4 group + t holds  a0 (group, 2t..)  a1 (group + 8, 2t..)  a2 (group, 2t + 8..)  a3 (group + 8, 2t + 8..),
// b0 (2t.., group)  b1 (2t + 8.., group),  d (group, 2t..) and (group + 8, 2t..).
template <class Element>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, unsigned line = __builtin_LINE()) {
  struct Arguments {
    float d[4];
    uint32_t a[4], b[2];
  } mine{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  host::meet("mma_16x8x16", line, mine, [](Arguments** all) {
    ++host::counters.mma;
    ++host::own_warp().mma;
    float left[16][16], right[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int group = lane / 4, pair = 2 * (lane % 4);
      for (int half = 0; half < 2; ++half) {
        const auto element = [half](uint32_t both) {
          return to_float(Element{static_cast<uint16_t>(both >> (16 * half))});
        };
        for (int r = 0; r < 4; ++r) left[group + 8 * (r % 2)][pair + half + 8 * (r / 2)] = element(all[lane]->a[r]);
        for (int r = 0; r < 2; ++r) right[pair + half + 8 * r][group] = element(all[lane]->b[r]);
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
        double sum = all[lane]->d[r];
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(left[row][k]) * right[k][column];
        all[lane]->d[r] = static_cast<float>(sum);
      }
    }
  });
  const host::Quiet quiet;
  for (int r = 0; r < 4; ++r) d[r] = mine.d[r];
}

namespace host {

inline void land(const PendingCopy& copy) {
  if (copy.bytes == 4) {
    store_half_word(copy.shared, copy.global != nullptr ? *reinterpret_cast<const volatile uint32_t*>(copy.global) : 0);
  } else if (copy.global != nullptr) {
    for (int at = 0; at < copy.bytes; at += 8) {
      store_word(copy.shared + at, *reinterpret_cast<const volatile uint64_t*>(copy.global + at));
    }
  } else {
    for (int at = 0; at < copy.bytes; at += 8) store_word(copy.shared + at, 0);
  }
}

// Takes the oldest copy out of the queue, unless it belongs to the latest `pending` groups.
inline bool next_landing(int pending, PendingCopy& copy) {
  const Quiet quiet;
  Thread& me = self();
  if (me.copies.empty() || me.copies.front().group >= me.open_group - pending) return false;
  copy = me.copies.front();
  me.copies.pop_front();
  ++counters.late_copies;
  counters.mma_behind_copies += own_warp().mma - copy.warp_mma;
  return true;
}

inline void cp_async(const char* operation, void* shared, const void* global, int bytes, bool real, unsigned line) {
  Thread& me = self();
  PendingCopy copy;
  bool at_once;
  {
    const Quiet quiet;
    copy = {static_cast<char*>(shared), real ? static_cast<const char*>(global) : nullptr, bytes, me.open_group,
            own_warp().mma};
    if (real && reinterpret_cast<uintptr_t>(global) % static_cast<unsigned>(bytes) != 0) {
      fail("%s, line %u: global address not aligned to %d bytes", operation, line, bytes);
    }
    at_once = options.seed != 0 && random_below(2) == 0;
  }
  count_access(shared, bytes, operation, line);
  if (at_once) {
    land(copy);
  } else {
    if (bytes == 4) store_half_word(copy.shared, static_cast<uint32_t>(kPoisonWord));
    for (int at = 0; at + 8 <= bytes; at += 8) store_word(copy.shared + at, kPoisonWord);
    const Quiet quiet;
    me.copies.push_back(copy);
  }
}

}  // namespace host

inline void cp_async_16(void* shared, const void* global, bool real, unsigned line = __builtin_LINE()) {
  host::cp_async("cp_async_16", shared, global, 16, real, line);
}
inline void cp_async_8(void* shared, const void* global, bool real, unsigned line = __builtin_LINE()) {
  host::cp_async("cp_async_8", shared, global, 8, real, line);
}
inline void cp_async_4(void* shared, const void* global, bool real, unsigned line = __builtin_LINE()) {
  host::cp_async("cp_async_4", shared, global, 4, real, line);
}
ATTFC_UNSEEN inline void cp_async_commit() { ++host::self().open_group; }
template <int kPending>
void cp_async_wait() {
  host::PendingCopy copy;
  while (host::next_landing(kPending, copy)) host::land(copy);
}

inline float exp2_approx(float x) {
  const float power = std::exp2(x);
  return power < 0x1p-126f ? 0.0f : power;
}

inline int bit_width(uint64_t value) { return value == 0 ? 0 : 64 - __builtin_clzll(value); }

// ThreadSanitizer knows the compiler's atomics, and what they order.
template <class T>
T atomic_add(T* at, T value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
T atomic_max(T* at, T value) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomic_cas(T* at, T expected, T value) {
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T load_relaxed(const T* at) {
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}
template <class T>
void store_relaxed(T* at, T value) {
  __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
inline uint32_t take_ticket(uint32_t* counter) { return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL); }

template <class Parameters>
const char* launch(void (*kernel)(Parameters), Grid grid, unsigned threads, size_t shared_bytes, void* /*stream*/,
                   const Parameters& parameters) {
  using namespace host;
  const Quiet quiet;
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || threads == 0 || threads > 1024)
    return "invalid configuration argument";
  if (shared_bytes > options.shared_limit) return "invalid argument: more shared memory than a block may have";
  if (threads % kWarpSize != 0) fail("a launch of %u threads: no whole warps", threads);
  struct Arguments {
    void (*kernel)(Parameters);
    const Parameters* parameters;
  } arguments{kernel, &parameters};
  char launch_end = 0;
  random_state = options.seed;
  ++counters.launches;

  std::vector<unsigned> order(static_cast<size_t>(grid.x) * grid.y);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<unsigned>(i);
  for (size_t i = order.size(); options.seed != 0 && i > 1; --i)
    std::swap(order[i - 1], order[random_below(static_cast<uint32_t>(i))]);

  std::deque<Block> blocks;
  std::deque<Arena> arenas;
  static std::vector<char*> stacks;
  size_t stacks_used = 0;
  for (unsigned index : order) {
    if (blocks.empty() || !kReuseMemoryAcrossBlocks) {
      blocks.emplace_back();
      arenas.emplace_back(shared_bytes);
      block = &blocks.back();
      block->threads.resize(threads);
      block->warps.resize(threads / kWarpSize);
      for (Thread& thread : block->threads) {
        if (stacks_used == stacks.size()) stacks.push_back(map_stack());
        thread.context.stack = stacks[stacks_used++];
      }
    } else {
      arenas.back().reset();
    }
    block->x = index % grid.x;
    block->y = index / grid.x;
    block->arena = &arenas.back();
    block->threads_left = threads;
    block->launch_end = &launch_end;
    block->launch_arguments = &arguments;
    block->run_kernel = [](const void* erased) {
      const Arguments& call = *static_cast<const Arguments*>(erased);
      call.kernel(*call.parameters);
    };
#if defined(__SANITIZE_THREAD__)
    block->scheduler.tsan_fiber = __tsan_get_current_fiber();
#endif
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = block->threads[i];
      thread.index = i;
      thread.state = State::kRunnable;
      thread.open_group = 0;
      prepare(thread.context, fiber_main);
    }
    for (Warp& warp : block->warps) {
      warp.runnable = 0xffffffffu;
      warp.arrived = warp.done = 0;
    }
    if (asynchronous.begin != nullptr) asynchronous.begin();
    run_threads();
    if (asynchronous.end != nullptr) asynchronous.end();
    block->arena->check();
    ++counters.blocks;
    for (Warp& warp : block->warps) counters.bank_conflicts += warp.bank_log.finish();
    for (Thread& thread : block->threads) release(thread.context);
  }
  happens_after(&launch_end);
  block = nullptr;
  return nullptr;
}

}  // namespace attfc::gpu
