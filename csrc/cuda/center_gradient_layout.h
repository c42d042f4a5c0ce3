// The centre gradient kernel's shapes: tiles, warps, and where everything lies in shared memory.
#pragma once

#include "center_gradient_parameters.h"
#include "tile_product.h"

namespace attfc::cuda {

// One instantiation. kCenters x kDim centres stay in shared memory; tiles of kRows embeddings stream past them.
template <int dim, int centers, int rows, int stages, int product_rows, int product_columns>
struct CenterGradientConfig {
  static constexpr int kDim = dim, kCenters = centers, kRows = rows;
  static constexpr int kStages = stages;  // tiles of embeddings in shared memory: 3 or 4

  // kRowLanes neighbouring threads own a row of the cosines; a warp owns kCenters x kGradColumns of the sums.
  static constexpr int kThreads = 4 * centers;
  static constexpr int kWarps = kThreads / gpu::kWarpSize;
  static constexpr int kRowLanes = kThreads / rows;
  static constexpr int kGradColumns = dim / kWarps;
  static constexpr int kResidentBlocks = dim == 128 ? 2 : 1;  // what registers must allow on a multiprocessor

  using Product = CosineProduct<dim, rows, centers, product_rows, product_columns, kWarps>;
  static constexpr int kParts = Product::kParts;

  static_assert(stages == 3 || stages == 4);
  static_assert(rows == 16 || rows == 32);
  static_assert(kRowLanes == 8 || kRowLanes == 16, "a row's lanes are in one warp and read 128 bytes of it at a time");
  static_assert(centers % 16 == 0 && kGradColumns % 16 == 0);
};

// The map of a block's shared memory.
//
//   piece        elements                             bytes at D 512, 64 centres, 32 rows, 3 stages, 2 parts
//   centers      kCenters x kDim                       65536   in the end the gradient, on its way out
//   embeddings   kStages x kRows x kDim                98304
//   cosines      2 x kParts x kRows x kCenters float32 32768   this tile's and the next one's; in the end partial dots
//   weights      2 x kRows x kCenters                   8192   G, last tile's and this one's
//   row_numbers  4 x kRows x 48 bytes                   6144   this tile's to the third next one's
//   factors      kCenters float32                        256   center_scale; 0 of an empty slot
//   warp_flags   2 x kWarps                               64
template <class Config, class Element>
struct CenterGradientShared {
  static constexpr int kCenters = Config::kCenters * Config::kDim;
  static constexpr int kEmbeddings = Config::kRows * Config::kDim;
  static constexpr int kCosines = Config::kParts * Config::kRows * Config::kCenters;
  static constexpr int kWeights = Config::kRows * Config::kCenters;
  static constexpr int kNumberTiles = 4;
  static constexpr size_t kBytes = 2 * (kCenters + size_t{Config::kStages} * kEmbeddings) + 4 * size_t{2} * kCosines +
                                   2 * size_t{2} * kWeights +
                                   sizeof(RowNumbers) * size_t{kNumberTiles} * Config::kRows +
                                   4 * size_t{Config::kCenters} + 4 * size_t{2} * Config::kWarps;
  static_assert(2 * kCosines >= Config::kWarps * Config::kCenters, "the partial dots take the cosines' place");

  Element* centers;
  Element* embeddings;
  float* cosines;
  Element* weights;
  RowNumbers* row_numbers;
  float* factors;
  uint32_t* warp_flags;

  ATTFC_DEVICE explicit CenterGradientShared(gpu::SharedArena arena) {
    centers = arena.take<Element>(kCenters);
    embeddings = arena.take<Element>(Config::kStages * kEmbeddings);
    cosines = arena.take<float>(2 * kCosines);
    weights = arena.take<Element>(2 * kWeights);
    row_numbers = arena.take<RowNumbers>(kNumberTiles * Config::kRows);
    factors = arena.take<float>(Config::kCenters);
    warp_flags = arena.take<uint32_t>(2 * Config::kWarps);
  }

  ATTFC_DEVICE Element* embedding_tile(int tile) const { return embeddings + tile % Config::kStages * kEmbeddings; }
  ATTFC_DEVICE float* cosine_tile(int tile) const { return cosines + (tile & 1) * kCosines; }
  // fault: center_gradient_weight_buffers
  ATTFC_DEVICE Element* weight_tile(int tile) const { return weights + (tile & 1) * kWeights; }
  ATTFC_DEVICE RowNumbers* number_tile(int tile) const {
    return row_numbers + (tile & (kNumberTiles - 1)) * Config::kRows;  // fault: number_reuse
  }
  // fault: center_gradient_flag_buffers
  ATTFC_DEVICE uint32_t* flag_tile(int tile) const { return warp_flags + (tile & 1) * Config::kWarps; }
};

}  // namespace attfc::cuda
