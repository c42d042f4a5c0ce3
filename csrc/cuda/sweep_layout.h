// The sweep kernel's shapes: tiles, warps, and where everything lies in shared memory.
#pragma once

#include "tile_product.h"

namespace attfc::cuda {

// One instantiation. kRows x kDim embeddings stay in shared memory; tiles of kTile centres stream past them.
template <int dim, int rows, int tile, int stages, int product_rows, int product_columns>
struct SweepConfig {
  static constexpr int kDim = dim, kRows = rows, kTile = tile;
  static constexpr int kStages = stages;  // tiles of centres in shared memory: 3 or 4

  // Four threads own a row of the logits; a warp owns kRows x kGradColumns of the gradient accumulator.
  static constexpr int kThreads = 4 * rows;
  static constexpr int kWarps = kThreads / gpu::kWarpSize;
  static constexpr int kGradColumns = dim / kWarps;
  static constexpr int kResidentBlocks = dim == 128 ? 2 : 1;  // what registers must allow on a multiprocessor

  using Product = CosineProduct<dim, rows, tile, product_rows, product_columns, kWarps>;
  static constexpr int kParts = Product::kParts;

  static_assert(stages == 3 || stages == 4);
  static_assert(tile == 16 || tile == 32, "four lanes of a row read and write these without bank conflicts");
  static_assert(rows % 16 == 0 && kGradColumns % 16 == 0);
};

// The map of a block's shared memory. `grad`: the kernel also accumulates the gradient.
//
//   piece          elements                                bytes at D 512, 64 rows, 16 centres, 4 stages, 2 parts
//   embeddings     kRows x kDim                             65536
//   centers        kStages x kTile x kDim                   65536
//   logits         2 x kParts x kRows x kTile float32       16384   this tile's and the next one's
//   weights        2 x kRows x kTile                         4096   p N', last tile's and this one's (grad)
//   center_labels  4 x kTile int64                            512   this tile's to the third next one's
//   center_scales  4 x kTile float32                          256   likewise
//   row_factors    2 x kRows float32                          512   by what a moved reference scales the row (grad)
//   warp_flags     2 x kWarps                                  64   (grad)
template <class Config, class Element, bool grad>
struct SweepShared {
  static constexpr int kEmbeddings = Config::kRows * Config::kDim;
  static constexpr int kCenters = Config::kTile * Config::kDim;
  static constexpr int kLogits = Config::kRows * Config::kTile;
  static constexpr int kLabelTiles = 4;
  static constexpr size_t kBytes =
      2 * (kEmbeddings + size_t{Config::kStages} * kCenters) + 4 * size_t{2} * Config::kParts * kLogits +
      (8 + 4) * size_t{kLabelTiles} * Config::kTile +  // fault: shared_memory_of_labels
      (grad ? 2 * size_t{2} * kLogits + 4 * size_t{2} * Config::kRows + 4 * size_t{2} * Config::kWarps : 0);

  Element* embeddings;
  Element* centers;
  float* logits;
  int64_t* center_labels;
  float* center_scales;
  Element* weights;
  float* row_factors;
  uint32_t* warp_flags;

  ATTFC_DEVICE explicit SweepShared(gpu::SharedArena arena) {
    embeddings = arena.take<Element>(kEmbeddings);
    centers = arena.take<Element>(Config::kStages * kCenters);
    logits = arena.take<float>(2 * Config::kParts * kLogits);
    center_labels = arena.take<int64_t>(kLabelTiles * Config::kTile);
    center_scales = arena.take<float>(kLabelTiles * Config::kTile);
    if constexpr (grad) {
      weights = arena.take<Element>(2 * kLogits);
      row_factors = arena.take<float>(2 * Config::kRows);
      warp_flags = arena.take<uint32_t>(2 * Config::kWarps);
    }
  }

  ATTFC_DEVICE Element* center_tile(int stage) const { return centers + stage * kCenters; }
  ATTFC_DEVICE float* logit_tile(int64_t tile) const {
    return logits + (static_cast<int>(tile) & 1) * Config::kParts * kLogits;  // fault: logit_buffers
  }
  ATTFC_DEVICE int64_t* label_tile(int64_t tile) const {
    return center_labels + (static_cast<int>(tile) & (kLabelTiles - 1)) * Config::kTile;  // fault: label_reuse
  }
  ATTFC_DEVICE float* scale_tile(int64_t tile) const {
    return center_scales + (static_cast<int>(tile) & (kLabelTiles - 1)) * Config::kTile;
  }
  // fault: sweep_weight_buffers
  ATTFC_DEVICE Element* weight_tile(int64_t tile) const { return weights + (static_cast<int>(tile) & 1) * kLogits; }
  ATTFC_DEVICE float* factor_tile(int64_t tile) const {
    return row_factors + (static_cast<int>(tile) & 1) * Config::kRows;
  }
  ATTFC_DEVICE uint32_t* flag_tile(int64_t tile) const {
    return warp_flags + (static_cast<int>(tile) & 1) * Config::kWarps;  // fault: sweep_flag_buffers
  }
};

}  // namespace attfc::cuda
