// The two products of a sweep over tiles in shared memory, as a warp does them: ldmatrix and mma m16n8k16, float32
// sums.
#pragma once

#include "tile_layout.h"

namespace attfc::cuda {

// Cosines: rows x columns = A B^T over D, both operands row by row. A warp computes product_rows x product_columns of
// them over 1 / kParts of D: a wider warp tile reads shared memory less often. The parts lie one after the other in the
// result (LogitTile each); who reads them adds them.
template <int dim, int rows, int columns, int product_rows, int product_columns, int warps>
struct CosineProduct {
  static constexpr int kRowGroups = rows / product_rows, kColumnGroups = columns / product_columns;
  static constexpr int kParts = warps / (kRowGroups * kColumnGroups);
  static_assert(rows % product_rows == 0 && columns % product_columns == 0);
  static_assert(product_rows % 16 == 0 && product_columns % 16 == 0);
  static_assert(warps % (kRowGroups * kColumnGroups) == 0 && dim % (16 * kParts) == 0);

  template <class Element>
  ATTFC_DEVICE static void run(const Element* left, const Element* right, float* out, int warp, int lane) {
    using Tile = OperandTile<dim>;
    constexpr int kRowBlocks = product_rows / 16, kColumnPairs = product_columns / 16;
    constexpr int kSteps = dim / 16 / kParts;
    const int part = warp % kParts, group = warp / kParts;
    const int row = group % kRowGroups * product_rows;
    const int column = group / kRowGroups * product_columns;

    float sum[kRowBlocks][2 * kColumnPairs][4] = {};
    // a: rows lane % 16, low or high 8 of k by lane / 16. b: columns lane % 8 and, from lane 16, + 8; k half by lane /
    // 8 % 2.
    const int a_row = row + lane % 16, a_half = lane / 16;                       // fault: fragment_row
    const int b_row = column + lane % 8 + lane / 16 * 8, b_half = lane / 8 % 2;  // fault: fragment_k_half
    ATTFC_UNROLL_BY_4
    for (int step = 0; step < kSteps; ++step) {
      const int chunk = 2 * (part * kSteps + step);
      uint32_t a[kRowBlocks][4];
      ATTFC_UNROLL
      for (int m = 0; m < kRowBlocks; ++m) {
        gpu::ldmatrix_x4(left + Tile::offset(a_row + 16 * m, chunk + a_half), a[m]);
      }
      ATTFC_UNROLL
      for (int n = 0; n < kColumnPairs; ++n) {
        uint32_t b[4];
        gpu::ldmatrix_x4(right + Tile::offset(b_row + 16 * n, chunk + b_half), b);
        ATTFC_UNROLL
        for (int m = 0; m < kRowBlocks; ++m) {
          gpu::mma_16x8x16<Element>(sum[m][2 * n], a[m], b[0], b[1]);
          gpu::mma_16x8x16<Element>(sum[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    out += part * rows * columns;
    ATTFC_UNROLL
    for (int m = 0; m < kRowBlocks; ++m) {
      ATTFC_UNROLL
      for (int n = 0; n < 2 * kColumnPairs; ++n) {
        ATTFC_UNROLL
        for (int half = 0; half < 2; ++half) {
          // fault: accumulator_row
          const int at = LogitTile<columns>::offset(row + 16 * m + 8 * half + lane / 4, column + 8 * n + lane % 4 * 2);
          gpu::store_shared(reinterpret_cast<gpu::Float2*>(out + at),
                            gpu::Float2{sum[m][n][2 * half], sum[m][n][2 * half + 1]});
        }
      }
    }
  }

  // Four neighbouring cosines, the parts added in their order.
  ATTFC_DEVICE static gpu::Float4 read(const float* out, int row, int column) {
    const float* at = out + LogitTile<columns>::offset(row, column);
    gpu::Float4 sum = gpu::load_shared(reinterpret_cast<const gpu::Float4*>(at));
    ATTFC_UNROLL
    for (int other = 1; other < kParts; ++other) {
      const gpu::Float4 more = gpu::load_shared(reinterpret_cast<const gpu::Float4*>(at + other * rows * columns));
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    return sum;
  }
};

// sum += A B for 16 of the inner axis: A = 16 kGroups rows of weights, load_weights(m, a) its fragments; B = rows first
// .. first + 15 of the operand tile, of them 8 kColumnBlocks columns from `chunk` on.
template <int dim, class Element, int kGroups, int kColumnBlocks, class LoadWeights>
ATTFC_DEVICE void add_weighted_rows(float (&sum)[kGroups][kColumnBlocks][4], LoadWeights load_weights,
                                    const Element* operand, int first, int chunk, int lane) {
  uint32_t a[kGroups][4];
  ATTFC_UNROLL
  for (int m = 0; m < kGroups; ++m) load_weights(m, a[m]);
  ATTFC_UNROLL
  for (int n = 0; n < kColumnBlocks / 2; ++n) {
    uint32_t b[4];
    // fault: fragment_transposed
    gpu::ldmatrix_x4_trans(operand + OperandTile<dim>::offset(first + lane % 16, chunk + 2 * n + lane / 16), b);
    ATTFC_UNROLL
    for (int m = 0; m < kGroups; ++m) {
      gpu::mma_16x8x16<Element>(sum[m][2 * n], a[m], b[0], b[1]);
      gpu::mma_16x8x16<Element>(sum[m][2 * n + 1], a[m], b[2], b[3]);
    }
  }
}

}  // namespace attfc::cuda
