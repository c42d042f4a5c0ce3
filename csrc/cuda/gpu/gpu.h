// What a kernel may use of a GPU. Kernels under csrc/cuda include this header and contain no PTX, no CUDA keyword and
// no #ifdef, so that nvcc and g++ compile the same source: for a GPU (device.h: thin PTX wrappers) and for a test run
// on the host (tests/csrc/host_gpu: every CUDA thread is a fiber). The #ifdef below is the only one; every name in
// namespace attfc::gpu has both forms, and tests/csrc/wrappers_test.cpp holds the host's to tables from the PTX ISA.
//
//   thread_index() block_index_x() block_index_y()                 where am I
//   SharedArena{}.take<T>(n)                                       the block's dynamic shared memory, piece by piece
//   load_shared(p) store_shared(p, v)                              4, 8, 16 bytes; the host counts bank conflicts
//   sync_block() shuffle_xor(v, lanes) warp_any(b)                 full blocks, full warps
//   ldmatrix_x4[_trans](row, r) mma_16x8x16<Element>(d, a, b0, b1) tensor cores
//   cp_async_16 / _8 / _4 / _commit / _wait<N>                     global to shared without registers
//   pack<Element>(lo, hi) to_float(e) exp2_approx(x) bit_width(n)  numbers
//   atomic_add(p, v) atomic_max(p, v) atomic_cas(p, expected, v)   the old value; they order nothing else
//   load_relaxed(p) store_relaxed(p, v)                            where another block may write or read it meanwhile
//   take_ticket(p)                                                 how many came before: all they wrote is seen
//   launch(kernel, grid, threads, shared_bytes, stream, params)    nullptr, or what went wrong
#pragma once

#include <cstdint>

namespace attfc::gpu {

// 16-bit floats by their bits: the same type for nvcc and g++, no toolkit header needed.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Vector accesses: one instruction each.
struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(8) Word2 {
  uint32_t x, y;
};
struct alignas(16) Long2 {
  int64_t x, y;
};

struct Grid {
  unsigned x, y;
};

constexpr int kWarpSize = 32;

}  // namespace attfc::gpu

#ifdef __CUDACC__
#include "device.h"
#else
#include "host_gpu/host.h"  // tests/csrc, on the include path of host builds only
#endif
