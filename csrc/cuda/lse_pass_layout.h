// The lse pass's shapes and its map of shared memory.
#pragma once

#include "gpu/sm90.h"
#include "sweep_parameters.h"

namespace attfc::cuda {

constexpr int kLsePassTile = 128;  // centres whose mass is kept as one number
constexpr int kLsePassRows = 128;  // embeddings of a block

// One instantiation. kLsePassRows x kDim embeddings stay in shared memory; centres stream past them in steps of
// kLsePassTile x 64 columns, kStages of them on their way.
template <int dim, int stages>
struct LsePassConfig {
  static constexpr int kDim = dim, kStages = stages;
  static constexpr int kSteps = dim / gpu::kTileColumns;  // of a tile
  static constexpr int kConsumers = 2;                    // warpgroups, 64 rows each
  static constexpr int kThreads = (1 + kConsumers) * gpu::kWarpGroupSize;
  // Registers a thread after the warpgroups have traded; ptxas gives all of them 168 at launch.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * gpu::kWarpGroupSize <= 65536);
};

// The map of a block's shared memory; bytes at D 512, 5 stages: 217088, 212 KiB.
//
// barrier             arrivals of a phase                          a phase completes when
// embeddings_full     producer, with bytes                         the block's embeddings have landed (once)
// full[stage]         producer, with bytes                         a step of centres has landed
// empty[stage]        lane 0 of each consumer warp                 all products that read the step are done
// numbers_full[i]     32: the lanes that wrote                     a tile's labels and scales are written
// numbers_empty[i]    256: every consumer thread                   all have read them
template <class Config>
struct LsePassShared {
  using Step = uint16_t[kLsePassTile * gpu::kTileColumns];  // 16 KiB, swizzled (gpu/sm90.h)
  static_assert(kLsePassRows == kLsePassTile, "both operands are cut alike");
  struct Numbers {
    int64_t labels[kLsePassTile];
    float scales[kLsePassTile];
  };

  alignas(1024) Step embeddings[Config::kSteps];  // 131072
  alignas(1024) Step centers[Config::kStages];    //  81920
  alignas(16) Numbers numbers[2];                 //   3072: this tile's and the next one's
  gpu::Barrier embeddings_full;
  gpu::Barrier full[Config::kStages], empty[Config::kStages];
  gpu::Barrier numbers_full[2], numbers_empty[2];
};

// The mass of a tile in 16 bits: log2 of sum_j exp(z_j) in steps of 1/32, rounded up, so that what is decoded is never
// less, and at most 2^(1/16) times as much. 0: nothing at all. Beyond 2^-1024 .. 2^1023 it is the nearest end; a row
// whose lse lies below the lower end then leaves out no tile.
struct TileMass {
  static constexpr float kSteps = 32, kOffset = 1024;
  ATTFC_HOST_DEVICE static uint16_t encode(float log2_mass) {
    if (log2_mass == -INFINITY) return 0;
    const float code = floorf((log2_mass + kOffset) * kSteps) + 2;
    return static_cast<uint16_t>(code < 1 ? 1.0f : code < 65535 ? code : 65535.0f);
  }
  ATTFC_HOST_DEVICE static float log2_mass(uint16_t code) {
    return code == 0 ? -INFINITY : code == 65535 ? INFINITY : static_cast<float>(code) / kSteps - kOffset;
  }
};

}  // namespace attfc::cuda
