// The arguments of the enqueue kernels and their workspace.
#pragma once

#include "../head_step.h"
#include "label_table.h"

namespace attfc::cuda {

constexpr int kEnqueueThreads = 512;
constexpr int64_t kStampsPerThread = 8;

// Bins of a stamp's distance from a lower bound: exact up to 64, then 64 for each doubling. So the k smallest stamps
// and a share of about 1/64 more lie in the bins up to the k-th's, wherever stamps lie between them and the clock.
constexpr int kBinsPerOctaveLog2 = 6, kBinsPerOctave = 1 << kBinsPerOctaveLog2;
constexpr int kStampBins = kBinsPerOctave * (65 - kBinsPerOctaveLog2);

ATTFC_DEVICE int stamp_bin(int64_t stamp, int64_t least) {
  const uint64_t distance = static_cast<uint64_t>(stamp) - static_cast<uint64_t>(least);
  if (distance < kBinsPerOctave) return static_cast<int>(distance);
  const int octave = gpu::bit_width(distance) - kBinsPerOctaveLog2;                              // at least 1
  return octave * kBinsPerOctave + static_cast<int>(distance >> (octave - 1)) - kBinsPerOctave;  // fault: stamp_bin
}

// Refresh: what a step's launches tell each other.
struct RefreshState {
  int64_t clock;        // before the step
  uint32_t waiting;     // rows that are written and have no slot of their own
  uint32_t candidates;  // slots in the list
};

struct EnqueueParameters : EnqueueArguments {
  int32_t* slot_of_row;  // [rows], -1: not written
  // Of refresh only.
  RefreshState* state;
  int32_t* waiting_rows;     // [rows], in their order
  LabelTable table;          // in global memory
  int32_t* last_row;         // [table.size], of the label there
  uint32_t* histogram;       // [kStampBins]
  int64_t* least_of_block;   // [scan_blocks], a lower bound for the stamps of a block
  int64_t* candidate_stamp;  // [slots]
  int32_t* candidate_slot;   // [slots]
  unsigned scan_blocks;
};

}  // namespace attfc::cuda
