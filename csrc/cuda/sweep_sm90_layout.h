// The shapes of the sweep by wgmma, and its map of shared memory.
#pragma once

#include "gpu/sm90.h"
#include "sweep_parameters.h"

namespace attfc::cuda {

constexpr int kSm90Rows = 64;  // embeddings of a block
constexpr int kSm90Tile = 64;  // centres whose weights are one operand; half of them are a warpgroup's logits
constexpr int kSm90Half = kSm90Tile / 2;

template <int dim>
struct SweepSm90Config {
  static constexpr int kDim = dim;
  static constexpr int kSteps = dim / gpu::kTileColumns;  // of 64 columns
  static constexpr int kStages = 4;                       // halves of tiles in shared memory: two tiles
  static constexpr int kConsumers = 2;                    // warpgroups: 32 centres' logits, kDim / 2 columns of O
  static constexpr int kColumns = dim / kConsumers;
  static constexpr int kAccumulators = kColumns / 128;
  static constexpr int kThreads = (1 + kConsumers) * gpu::kWarpGroupSize;
  // Registers a thread after the warpgroups have traded; ptxas gives all of them 168 at launch.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * gpu::kWarpGroupSize <= 65536);
  static_assert(kColumns % 128 == 0, "O is summed by wgmma m64n128k16");
};

// The map of a block's shared memory; bytes at D 512: 220160, 215 KiB.
//
// barrier              arrivals of a phase             a phase completes when
// embeddings_full      producer, with bytes            the block's embeddings have landed (once)
// full[stage]          producer, with bytes            half a tile of centres has landed
// numbers_full[stage]  32: the lanes that wrote        its labels and scales are there, empty slots are zeros
// empty[stage]         lane 0 of each consumer warp    all products that read it are done
// weights_full         256: every consumer thread      a tile's weights and flags are written
// moved                256, twice for each move        the rows' wishes are written; the weights are written anew
// halves_full          128: the second consumer        its sums of the rows are written (once)
template <class Config>
struct SweepSm90Shared {
  using EmbeddingStep = uint16_t[kSm90Rows * gpu::kTileColumns];  // 8 KiB, swizzled (gpu/sm90.h)
  using CenterStep = uint16_t[kSm90Half * gpu::kTileColumns];     // 4 KiB, likewise
  static_assert(kSm90Tile == gpu::kTileColumns, "the weights of a tile are one tile of wgmma");
  struct Numbers {
    int64_t labels[kSm90Half];
    float scales[kSm90Half];
  };

  alignas(1024) EmbeddingStep embeddings[Config::kSteps];             //  65536
  alignas(1024) CenterStep centers[Config::kStages][Config::kSteps];  // 131072
  alignas(1024) uint16_t weights[2][kSm90Rows * kSm90Tile];           //  16384: p N' s, last tile's and this one's
  alignas(16) Numbers numbers[Config::kStages];                       //   1536
  // Of the rows, what a thread would otherwise keep in registers: O leaves few.
  alignas(16) RowModulation<float> modulations[kSm90Rows];  //   1024
  int64_t labels[kSm90Rows];                                //    512; below 0: ignored, or past the end
  float weight_scales[kSm90Rows];                           //    256: of WeightRange
  PartialLse<float> halves[kSm90Rows];                      //   2560: a row's sums over half of the centres
  float wishes[Config::kConsumers][kSm90Rows];              //    512
  uint32_t flags[2][Config::kConsumers * 4];                //     64: of the warps, likewise
  gpu::Barrier embeddings_full, weights_full, moved, halves_full;
  gpu::Barrier full[Config::kStages], numbers_full[Config::kStages], empty[Config::kStages];
};

}  // namespace attfc::cuda
