// Host runs of kernels, part 3: a block's shared memory. It starts as NaN, red zones lie between its pieces, and the
// bank conflicts of every access are counted.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"

namespace attfc::gpu::host {

constexpr size_t kRedZoneBytes = 1024;  // red zones move no piece to other banks, nor in a 128-byte swizzle's pattern
constexpr uint16_t kPoison = 0x7fff;    // a NaN as bfloat16, float16 and float32, and as int64 no empty slot's label

constexpr uint64_t kPoisonWord = 0x7fff7fff7fff7fffu;

// A typed store, so that a sanitizer sees it as the calling thread's.
inline void store_word(char* target, uint64_t word) { *reinterpret_cast<volatile uint64_t*>(target) = word; }
inline void store_half_word(char* target, uint32_t word) { *reinterpret_cast<volatile uint32_t*>(target) = word; }

class Arena {
 public:
  // `bytes` is what the launch asked for.
  explicit Arena(size_t bytes) : bytes_(bytes), capacity_(bytes + kRedZoneBytes * (kMaxPieces + 1)) {
    memory_.reset(static_cast<char*>(std::aligned_alloc(1024, (capacity_ + 1023) / 1024 * 1024)));
    reset();
  }
  ~Arena() { unpoison(); }
  Arena(const Arena&) = delete;

  void reset() {
    unpoison();
    for (size_t at = 0; at < capacity_; at += 2) std::memcpy(&memory_[at], &kPoison, 2);
    stored_by_.assign(capacity_ / 4 + 1, 0);
    pieces_ = 0;
    taken_ = 0;
    end_ = 0;
    poison_from(0);
  }

  // Every thread of the block takes the same pieces in the same order; the first to come lays them out.
  char* take(size_t bytes, size_t align, int piece) {
    if (piece == pieces_) {
      if (pieces_ == kMaxPieces) fail("shared memory in more than %d pieces", kMaxPieces);
      if (taken_ % align != 0) fail("shared memory piece %d starts at byte %zu, aligned to %zu", piece, taken_, align);
      if (taken_ + bytes > bytes_) {
        fail("shared memory: pieces 0..%d need %zu bytes, the launch gave %zu", piece, taken_ + bytes, bytes_);
      }
      // The red zone before the piece keeps its place modulo 1024 bytes.
      starts_[piece] = end_ + kRedZoneBytes;
      end_ = starts_[piece] + bytes;
      sizes_[piece] = bytes;
      taken_ += bytes;
      ++pieces_;
#if defined(__SANITIZE_ADDRESS__)
      ASAN_UNPOISON_MEMORY_REGION(&memory_[starts_[piece]], bytes);
#endif
    }
    if (sizes_[piece] != bytes) fail("threads disagree about shared memory piece %d", piece);
    return &memory_[starts_[piece]];
  }

  // At the block's end: all bytes used, no red zone touched.
  void check() {
    if (taken_ != bytes_) fail("shared memory: the launch gave %zu bytes, the kernel took %zu", bytes_, taken_);
    unpoison();
    size_t at = 0;
    for (int piece = 0; piece <= pieces_; ++piece) {
      const size_t end = piece < pieces_ ? starts_[piece] : capacity_;
      for (; at + 1 < end; at += 2) {
        if (std::memcmp(&memory_[at], &kPoison, 2) == 0) continue;
        fail("shared memory: a write beside piece %d, byte %zu of its end", piece - 1,
             at - (piece == 0 ? 0 : starts_[piece - 1] + sizes_[piece - 1]));
      }
      if (piece < pieces_) at = starts_[piece] + sizes_[piece];
    }
  }

  void check_inside(const void* pointer, int bytes, const char* operation, unsigned line) const {
    const char* at = static_cast<const char*>(pointer);
    if (reinterpret_cast<uintptr_t>(pointer) % static_cast<unsigned>(bytes) != 0) {
      fail("%s, line %u: address not aligned to %d bytes", operation, line, bytes);
    }
    for (int piece = 0; piece < pieces_; ++piece) {
      const char* start = &memory_[starts_[piece]];
      if (at >= start && at + bytes <= start + sizes_[piece]) return;
    }
    fail("%s, line %u: %d bytes outside the shared memory pieces", operation, line, bytes);
  }

  // Where a piece lies, as a shared-memory address.
  uint32_t offset_of(const void* pointer) const {
    return static_cast<uint32_t>(static_cast<const char*>(pointer) - &memory_[0]);
  }
  char* at(uint32_t offset) const {
    if (offset >= capacity_) fail("shared memory: address %u is beyond it", offset);
    return &memory_[offset];
  }

  // A thread's stores are unknown to copies and products until that thread's fence_proxy_async.
  void note_store(const void* pointer, int bytes, unsigned thread) {
    const uint32_t first = offset_of(pointer);
    for (uint32_t word = first / 4; word <= (first + static_cast<uint32_t>(bytes) - 1) / 4; ++word) {
      stored_by_[word] = static_cast<uint16_t>(thread + 1);
    }
  }
  void make_visible(unsigned thread) {
    for (uint16_t& each : stored_by_) each = each == thread + 1 ? 0 : each;
  }
  void check_visible(const void* pointer, int bytes, const char* operation, unsigned line) const {
    const uint32_t first = offset_of(pointer);
    for (uint32_t word = first / 4; word <= (first + static_cast<uint32_t>(bytes) - 1) / 4; ++word) {
      if (stored_by_[word] == 0) continue;
      fail("%s, line %u: a store of thread %d without its fence_proxy_async", operation, line, stored_by_[word] - 1);
    }
  }

 private:
  static constexpr int kMaxPieces = 16;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };

  void poison_from([[maybe_unused]] size_t at) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(&memory_[at], capacity_ - at);
#endif
  }
  void unpoison() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(&memory_[0], capacity_);
#endif
  }

  size_t bytes_, capacity_;
  std::unique_ptr<char[], Free> memory_;
  std::vector<uint16_t> stored_by_;  // thread + 1, of each 4 bytes
  int pieces_ = 0;
  size_t taken_ = 0, end_ = 0;
  size_t starts_[kMaxPieces], sizes_[kMaxPieces];
};

// Extra passes a warp's access needs because lanes meet in a bank: 32 banks of 4 bytes; a pass serves the whole warp
// for 4-byte accesses, half of it for 8 and a quarter for 16. Lanes reading the same word share it.
inline int bank_conflicts(const void* const* addresses, uint32_t lanes, int bytes) {
  const int words = bytes / 4, lanes_a_pass = kWarpSize / words;
  int extra = 0;
  for (int first = 0; first < kWarpSize; first += lanes_a_pass) {
    uintptr_t distinct[32][32];
    int count[32] = {}, worst = 1;
    for (int lane = first; lane < first + lanes_a_pass; ++lane) {
      if ((lanes >> lane & 1) == 0) continue;
      for (int word = 0; word < words; ++word) {
        const uintptr_t address = reinterpret_cast<uintptr_t>(addresses[lane]) / 4 + static_cast<unsigned>(word);
        const unsigned bank = address % 32;
        bool seen = false;
        for (int other = 0; other < count[bank]; ++other) seen = seen || distinct[bank][other] == address;
        if (!seen) distinct[bank][count[bank]++] = address;
        if (count[bank] > worst) worst = count[bank];
      }
    }
    extra += worst - 1;
  }
  return extra;
}

// Gathers the lanes of plain shared accesses, which do not meet: the n-th time a lane passes a line belongs to the n-th
// of every other lane.
class BankLog {
 public:
  // Returns the conflicts of accesses completed by this one.
  int add(unsigned line, unsigned lane, const void* address, int bytes) {
    Access& access = open_[{line, passes_[{line, lane}]++}];
    access.addresses[lane] = address;
    access.lanes |= 1u << lane;
    access.bytes = bytes;
    if (access.lanes != 0xffffffffu) return 0;
    const int extra = bank_conflicts(access.addresses, access.lanes, bytes);
    open_.erase({line, passes_[{line, lane}] - 1});
    return extra;
  }
  // Accesses by a part of the warp only.
  int finish() {
    int extra = 0;
    for (const auto& [key, access] : open_) extra += bank_conflicts(access.addresses, access.lanes, access.bytes);
    open_.clear();
    passes_.clear();
    return extra;
  }

 private:
  struct Access {
    const void* addresses[kWarpSize];
    uint32_t lanes = 0;
    int bytes = 0;
  };
  std::map<std::pair<unsigned, unsigned>, unsigned> passes_;
  std::map<std::pair<unsigned, unsigned>, Access> open_;
};

}  // namespace attfc::gpu::host
