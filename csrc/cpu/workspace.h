// A kernel's workspace: laid out first, so that the caller can allocate it, then addressed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attfc::cpu {

class Workspace {
  static constexpr size_t kAlignment = 64;

 public:
  static size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  // Returns the offset of a new piece.
  size_t reserve(size_t bytes) {
    const size_t offset = bytes_;
    bytes_ += aligned(bytes);
    return offset;
  }

  // What the caller must provide: one unit more than the pieces, because place() aligns the start.
  size_t bytes() const { return bytes_ + kAlignment; }

  void place(void* memory) { base_ = reinterpret_cast<char*>(aligned(reinterpret_cast<uintptr_t>(memory))); }

  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  size_t bytes_ = 0;
  char* base_ = nullptr;
};

}  // namespace attfc::cpu
