// How tiles lie in shared memory: 16-byte chunks of a 128-byte line trade places, so that the accesses named below meet
// no bank twice. offset() is in elements.
#pragma once

#include "gpu/gpu.h"

namespace attfc::cuda {

// dim 16-bit elements a row (embeddings, centres). Read by ldmatrix: 8 rows, the same chunk; by mma fragments (8 rows x
// 16 bytes); by rows.
template <int dim>
struct OperandTile {
  static constexpr int kChunks = dim / 8;
  // fault: operand_swizzle
  ATTFC_DEVICE static int offset(int row, int chunk) { return row * dim + ((chunk ^ (row & 7)) << 3); }
};

// columns float32 a row. Written by mma fragments (4 rows x 32 bytes at a time), read by rows (16 columns: 2 rows x 64
// bytes; else 128 bytes of a row, or 2 rows x 64).
template <int columns>
struct LogitTile {
  static_assert(columns == 16 || columns == 32 || columns == 64);
  ATTFC_DEVICE static int offset(int row, int column) {
    const int chunk = column >> 2;
    const int swizzle = columns >= 32 ? ((row & 1) << 2 | (row & 2)) : (row & 2);  // fault: logit_swizzle
    return row * columns + ((chunk ^ swizzle) << 2) + (column & 3);
  }
};

// columns 16-bit weights a row. Written by rows (4 rows x 32 bytes, or 2 rows x 64), read by ldmatrix: 8 rows, the same
// chunk.
template <int columns>
struct WeightTile {
  static_assert(columns == 16 || columns == 32 || columns == 64);
  ATTFC_DEVICE static int offset(int row, int column) {
    const int chunk = column >> 3;
    const int swizzle = columns == 64   ? ((row & 1) << 2 | (row & 2) | (row >> 2 & 1))  // fault: weight_swizzle
                        : columns == 32 ? ((row >> 1 & 1) << 1 | (row >> 2 & 1))
                                        : (row >> 2 & 1);
    return row * columns + ((chunk ^ swizzle) << 3) + (column & 7);
  }
};

}  // namespace attfc::cuda
