// What a kernel may use of a Hopper GPU (sm_90a) beyond gpu.h: asynchronous copies of tiles, barriers that count them,
// and tensor-core products whose operands stay in shared memory. As there, every name has two forms: device_sm90.h
// (thin PTX wrappers) and tests/csrc/host_gpu/sm90.h (the same on fibers); sm90_test.cpp holds the latter to the PTX
// ISA. Kernels that use it stand under `if constexpr (gpu::kSm90a)`: on other architectures they are empty.
//
//   barrier_init(b, n) fence_barrier_init()                        by one thread; then sync_block()
//   barrier_arrive(b) barrier_arrive_expect_tx(b, bytes)           of n arrivals; more bytes to come in this phase
//   barrier_wait(b, parity)                                        until the phase of that parity is complete
//   encode_tensor_map(map, matrix)                                 on the host: nullptr, or what is wrong
//   copy_tile(shared, map, b, column, row)                         TMA: one thread; tells b its bytes when they landed
//   fence_proxy_async()                                            own store_shared before products or copies
//   lower_registers<n>() raise_registers<n>()                      by whole warpgroups
//   uniform(i)                                                     lane 0's
//   swizzled_operand(tile).at(bytes)                               16 columns of a tile: 32 bytes; 128 a row
//   swizzled_rows(tile, tile_bytes).at(bytes)                      16 rows of two tiles side by side: 128 columns
//   wgmma_fence() wgmma_64x128x16<Element, add>(d, a, b)           d (+)= a b^T by a warpgroup, asynchronously
//   wgmma_64x32x16<Element, add>(d, a, b)                          the same
//   wgmma_64x128x16_rows<Element, add>(d, a, b)                    d (+)= a b; b of swizzled_rows()
//   wgmma_commit() wgmma_wait<n>() wgmma_wait<n>(d)                until at most n groups are under way; d is readable
//
// Tiles: kTileColumns 16-bit elements (128 bytes) a row, the 16-byte chunk c of row r at chunk c ^ (r % 8): TMA's and
// wgmma's 128-byte swizzle. A tile starts at a multiple of 1024 bytes.
#pragma once

#include "gpu.h"

namespace attfc::gpu {

constexpr int kTileColumns = 64;
constexpr int kWarpGroupSize = 128;

template <class Element>
constexpr bool kIsBFloat16 = false;
template <>
inline constexpr bool kIsBFloat16<BFloat16> = true;

// A counter of arrivals and bytes in shared memory (mbarrier).
struct Barrier {
  uint64_t bits;
};

// An operand of wgmma: the low word of its descriptor (PTX ISA, "Matrix descriptor"), with the start address / 16 in
// bits 0..13 and the leading byte offset / 16 in 16..29: of 16 columns of a tile, which have none, 1; of 16 rows, the
// bytes from a tile to the one with the next 64 columns.
struct Operand {
  uint32_t low;

  ATTFC_DEVICE static Operand of_columns(uint32_t address) { return {(address & 0x3ffff) >> 4 | 1 << 16}; }
  ATTFC_DEVICE static Operand of_rows(uint32_t address, int tile_bytes) {
    return {(address & 0x3ffff) >> 4 | static_cast<uint32_t>(tile_bytes) >> 4 << 16};  // fault: rows_layout
  }

  // The high word: 1024 bytes between groups of 8 rows, / 16, in bits 32..45; 128-byte swizzle, 1, in 62..63.
  ATTFC_DEVICE uint64_t descriptor() const {
    return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | low;  // fault: operand_layout
  }
  ATTFC_DEVICE Operand at(int bytes) const { return {low + static_cast<uint32_t>(bytes / 16)}; }
};

// How a matrix in global memory is cut into tiles; opaque, for kernel parameters only.
struct alignas(128) TensorMap {
  unsigned char bytes[128];
};

// A matrix of 16-bit elements, and how many rows of it a tile has. Rows past the end arrive as zeros.
struct TiledMatrix {
  const void* data;  // aligned to 16 bytes
  bool bfloat16;
  int64_t rows, columns, row_stride;  // stride in elements, a multiple of 8
  int tile_rows;                      // at most 256
};

}  // namespace attfc::gpu

#ifdef __CUDACC__
#include "device_sm90.h"
#else
#include "host_gpu/sm90.h"  // tests/csrc, on the include path of host builds only
#endif
