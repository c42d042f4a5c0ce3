// Sums and ranks over the threads of a block, in an order that depends on their number alone.
#pragma once

#include "gpu/gpu.h"

namespace attfc::cuda {

// Sums of kCount numbers over the block, the same bits in every thread. One barrier a sum: two areas alternate, and a
// thread comes to an area again only when all have left the barrier after their reads of it.
template <class Value, int kCount, int kThreads>
class BlockSums {
 public:
  static constexpr size_t kBytes = sizeof(Value) * 2 * kCount * (kThreads / gpu::kWarpSize);

  ATTFC_DEVICE explicit BlockSums(gpu::SharedArena& arena) : sums_(arena.take<Value>(2 * kCount * kWarps)) {}

  ATTFC_DEVICE void add(Value (&values)[kCount]) {
    Value* area = sums_ + turn_ * kCount * kWarps;
    turn_ ^= 1;
    const unsigned thread = gpu::thread_index();
    ATTFC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      ATTFC_UNROLL
      // fault: sum_of_lanes
      for (int lanes = gpu::kWarpSize / 2; lanes > 0; lanes /= 2) values[i] += gpu::shuffle_xor(values[i], lanes);
      if (thread % gpu::kWarpSize == 0) gpu::store_shared(area + i * kWarps + thread / gpu::kWarpSize, values[i]);
    }
    gpu::sync_block();  // fault: sum_barrier
    ATTFC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      values[i] = 0;
      for (int warp = 0; warp < kWarps; ++warp) values[i] += gpu::load_shared(area + i * kWarps + warp);
    }
  }

 private:
  static constexpr int kWarps = kThreads / gpu::kWarpSize;
  Value* sums_;
  int turn_ = 0;
};

// The sum of `value` over the threads before this one, and over all. Areas alternate as above.
template <int kThreads>
class BlockRanks {
 public:
  static constexpr size_t kBytes = sizeof(uint32_t) * 2 * (kThreads / gpu::kWarpSize);

  ATTFC_DEVICE explicit BlockRanks(gpu::SharedArena& arena) : sums_(arena.take<uint32_t>(2 * kWarps)) {}

  ATTFC_DEVICE uint32_t before(uint32_t value, uint32_t& total) {
    uint32_t* area = sums_ + turn_ * kWarps;
    turn_ ^= 1;
    const unsigned thread = gpu::thread_index(), own_warp = thread / gpu::kWarpSize;
    uint32_t before = 0, sum = value;
    ATTFC_UNROLL
    for (unsigned lanes = 1; lanes < gpu::kWarpSize; lanes *= 2) {
      const uint32_t other = gpu::shuffle_xor(sum, static_cast<int>(lanes));
      before += (thread & lanes) != 0 ? other : 0;  // fault: rank_of_lanes
      sum += other;
    }
    if (thread % gpu::kWarpSize == 0) gpu::store_shared(area + own_warp, sum);
    gpu::sync_block();
    total = 0;
    for (unsigned warp = 0; warp < kWarps; ++warp) {
      const uint32_t each = gpu::load_shared(area + warp);
      before += warp < own_warp ? each : 0;
      total += each;
    }
    return before;
  }

 private:
  static constexpr int kWarps = kThreads / gpu::kWarpSize;
  uint32_t* sums_;
  int turn_ = 0;
};

}  // namespace attfc::cuda
