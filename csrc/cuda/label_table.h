// A table of labels in memory that one block shares: open addressing, at most half full.
#pragma once

#include "gpu/gpu.h"

namespace attfc::cuda {

constexpr int64_t kNoLabel = -1;

// Entries for `labels` labels: a power of two.
inline int label_table_size(int64_t labels) {
  int size = 64;
  while (size < 2 * labels) size *= 2;
  return size;
}

struct LabelTable {
  int64_t* keys;  // [size], kNoLabel where free
  int size;

  ATTFC_DEVICE int home(int64_t label) const {
    return static_cast<int>(static_cast<uint64_t>(label) * 0x9E3779B97F4A7C15u >> 32 & static_cast<unsigned>(size - 1));
  }
  // Where the label stands from now on. Threads may insert at the same time; between that and find() lies a barrier.
  ATTFC_DEVICE int insert(int64_t label) const {
    for (int at = home(label);; at = (at + 1) & (size - 1)) {
      const int64_t found = gpu::atomic_cas(keys + at, kNoLabel, label);
      if (found == kNoLabel || found == label) return at;  // fault: table_collision
    }
  }
  // -1: nowhere. Not load_shared(): where labels lie in the banks is chance.
  ATTFC_DEVICE int find(int64_t label) const {
    for (int at = home(label); keys[at] != kNoLabel; at = (at + 1) & (size - 1)) {
      if (keys[at] == label) return at;
    }
    return -1;
  }
};

}  // namespace attfc::cuda
