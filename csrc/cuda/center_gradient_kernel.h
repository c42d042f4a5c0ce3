// The centre gradient kernel: all rows stream past a block of class centres.
//
// Computes, for each centre j of the block and every row b (center_gradient.h for G and out):
//     c_bj = s_j x_b . w_j     first product, mma m16n8k16, float32 sums
//     G_bj                     float32; 0 in empty slots and ignored rows
//     A_j += sum_b G_bj x_b    second product; G rounded to the operands' 16 bits, float32 sums
//     out_j = s_j (A_j - (A_j . s_j w_j) s_j w_j), rounded once; A_j where there is no s
// A_j . s_j w_j is sum_b G_bj c_bj; taken from A it projects out G's rounding too.
//
// Grid: x = block of kCenters centres. Blocks that run together read the same rows, through L2. Threads: 4 kCenters.
// Shared memory: CenterGradientShared (center_gradient_layout.h). Registers: A takes kDim / 4 a thread. Bound as the
// sweep's kernel is, by shared memory reads of the first product and the tensor cores (csrc/README.md).
//
// Schedule: that of sweep_kernel.h with embeddings and centres in each other's place. Tiles of kRows rows flow through
// three steps, one interval each, one barrier between intervals:
//     interval i:   cosines of tile i + 1  |  weights of tile i  |  sums of tile i - 1  |  loading tile i + 2
// Cosines and weights lie row by row, so that neighbouring lanes own a row in the weights step and agree on its mass by
// shuffles; the second product reads the weights transposed. Whether 16 rows can be left out reaches it as flags.
#pragma once

#include "center_gradient_layout.h"

namespace attfc::cuda {

template <class Config, class Element>
class CenterGradientBlock {
 public:
  ATTFC_DEVICE explicit CenterGradientBlock(const CenterGradientParameters& parameters)
      : p(parameters),
        shared(gpu::SharedArena{}),
        thread(static_cast<int>(gpu::thread_index())),
        warp(thread / gpu::kWarpSize),
        lane(thread % gpu::kWarpSize),
        first_center(static_cast<int64_t>(gpu::block_index_x()) * kCenters) {}

  ATTFC_DEVICE void run() {
    load_own_centers();
    load_centers();
    load_numbers(0);
    load_numbers(1);
    wait_for_copies();
    load_embeddings(0);
    wait_for_copies();
    for (int now = -1; now <= p.tiles; ++now) {
      if constexpr (!kLoadsMidway) load_next(now);
      if (now >= 1) add_rows(now - 1);
      if constexpr (kLoadsMidway) {
        wait_for_copies();  // fault: center_gradient_midway_wait
        load_next(now);
      }
      if (now + 1 < p.tiles) {
        Config::Product::run(shared.embedding_tile(now + 1), shared.centers, shared.cosine_tile(now + 1), warp, lane);
      }
      if (now >= 0 && now < p.tiles) weigh(now);
      if constexpr (kLoadsMidway) {
        gpu::sync_block();
      } else {
        wait_for_copies();
      }
    }
    write();
  }

 private:
  static constexpr int kRows = Config::kRows, kCenters = Config::kCenters, kDim = Config::kDim;
  static constexpr bool kLoadsMidway = Config::kStages == 3;  // as in sweep_kernel.h
  static constexpr int kGroups = kCenters / 16, kColumnBlocks = Config::kGradColumns / 8;
  static constexpr int kOwn = kCenters / Config::kRowLanes;  // centres of a row that a thread weighs
  static constexpr float kLog2E = 1.4426950408889634f;
  using Tile = OperandTile<kDim>;

  const CenterGradientParameters& p;
  CenterGradientShared<Config, Element> shared;
  int thread, warp, lane;
  int64_t first_center;

  // The centres this thread weighs, the same in every tile: 4 (thread % kRowLanes) + 4 kRowLanes k .. + 3.
  int64_t own_label[kOwn];
  float own_factor[kOwn];

  // This warp's columns of A: 16 centres x 8 columns an mma fragment.
  float sum[kGroups][kColumnBlocks][4] = {};

  ATTFC_DEVICE int64_t center_label(int center) const {
    // fault: center_gradient_center_label_end
    return first_center + center < p.num_centers ? p.center_labels[first_center + center] : -1;
  }
  // center_scale, or 1; 0 of an empty slot, whose own may be anything.
  ATTFC_DEVICE float center_factor(int center, int64_t label) const {
    if (label < 0) return 0;  // fault: scale_of_empty_slot
    return p.center_scale != nullptr ? p.center_scale[first_center + center] : 1;
  }

  ATTFC_DEVICE void load_own_centers() {
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const int center = thread % Config::kRowLanes * 4 + k / 4 * 4 * Config::kRowLanes + k % 4;
      own_label[k] = center_label(center);
      own_factor[k] = center_factor(center, own_label[k]);
    }
    if (thread < kCenters) gpu::store_shared(shared.factors + thread, center_factor(thread, center_label(thread)));
  }

  ATTFC_DEVICE void wait_for_copies() {
    gpu::cp_async_commit();
    gpu::cp_async_wait<0>();  // fault: center_gradient_wait
    gpu::sync_block();        // fault: center_gradient_barrier
  }

  ATTFC_DEVICE void load_next(int now) {
    if (now + 2 >= p.tiles) return;
    load_embeddings(now + 2);
    load_numbers(now + 3);
  }

  // Empty slots become zeros.
  ATTFC_DEVICE void load_centers() {
    const Element* source = static_cast<const Element*>(p.centers);
    static_assert(kCenters * Tile::kChunks % Config::kThreads == 0);
    for (int index = thread; index < kCenters * Tile::kChunks; index += Config::kThreads) {
      const int center = index / Tile::kChunks, chunk = index % Tile::kChunks;
      const bool live = center_label(center) >= 0;  // fault: center_gradient_live_slot
      gpu::cp_async_16(shared.centers + Tile::offset(center, chunk),
                       source + (live ? (first_center + center) * p.center_stride + chunk * 8 : 0), live);
    }
  }

  // Numbers come a tile ahead of their embeddings, so that an ignored row's content is never read.
  ATTFC_DEVICE void load_numbers(int tile) {
    static_assert(kRows * kRowNumberChunks <= Config::kThreads);
    if (tile >= p.tiles || thread >= kRows * kRowNumberChunks) return;
    const gpu::Float4* source =
        reinterpret_cast<const gpu::Float4*>(p.row_numbers + static_cast<int64_t>(tile) * kRows);
    gpu::cp_async_16(reinterpret_cast<gpu::Float4*>(shared.number_tile(tile)) + thread, source + thread, true);
  }

  ATTFC_DEVICE void load_embeddings(int tile) {
    if (tile >= p.tiles) return;
    const Element* source = static_cast<const Element*>(p.embeddings);
    const int64_t first = static_cast<int64_t>(tile) * kRows;
    Element* target_tile = shared.embedding_tile(tile);
    const RowNumbers* numbers = shared.number_tile(tile);
    static_assert(kRows * Tile::kChunks % Config::kThreads == 0);
    ATTFC_UNROLL
    for (int step = 0; step < kRows * Tile::kChunks / Config::kThreads; ++step) {
      const int index = thread + step * Config::kThreads;
      const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
      const bool live = gpu::load_shared(&numbers[row].weights.label) >= 0;
      gpu::cp_async_16(target_tile + Tile::offset(row, chunk),
                       // fault: center_gradient_offset
                       source + (live ? (first + row) * p.embedding_stride + chunk * 8 : 0), live);
    }
  }

  // From x_b . w_j to G.
  ATTFC_DEVICE void weigh(int tile) {
    const int row = thread / Config::kRowLanes, column = thread % Config::kRowLanes * 4;
    const RowNumbers* numbers = shared.number_tile(tile) + row;
    const RowNumbers::Weights own = gpu::load_shared(&numbers->weights);
    const RowModulation<float> modulation = gpu::load_shared(&numbers->bend).modulation;
    const RowNumbers::Softmax softmax = gpu::load_shared(&numbers->softmax);

    float mass = 0;
    bool own_class = false;
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; k += 4) {
      const int at = column + k * Config::kRowLanes;
      const gpu::Float4 dot = Config::Product::read(shared.cosine_tile(tile), row, at);
      const float dots[4] = {dot.x, dot.y, dot.z, dot.w};
      float weight[4];
      ATTFC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float cosine = dots[i] * own_factor[k + i];
        // fault: filled_slot
        const bool same = own_label[k + i] == own.label, filled = own_label[k + i] >= 0 && own.label >= 0;
        float modulated, slope;
        modulate(modulation, cosine, modulated, slope);
        const float share = filled && !same ? gpu::exp2_approx((p.scale * modulated - softmax.lse) * kLog2E) : 0.0f;
        mass += share;
        own_class = own_class || (filled && same);
        weight[i] = !filled ? 0.0f : same ? own.target_weight : share * slope * own.weight;  // fault: own_class
      }
      gpu::store_shared(reinterpret_cast<gpu::Word2*>(shared.weight_tile(tile) + WeightTile<kCenters>::offset(row, at)),
                        gpu::Word2{gpu::pack<Element>(weight[0], weight[1]), gpu::pack<Element>(weight[2], weight[3])});
    }
    ATTFC_UNROLL
    // fault: row_mass
    for (int lanes = 1; lanes < Config::kRowLanes; lanes *= 2) mass += gpu::shuffle_xor(mass, lanes);
    const bool needed = !(mass <= softmax.omissible) || (own_class && own.target_weight != 0);  // fault: needed_block
    const bool any_needed = gpu::warp_any(needed);
    if (lane == 0) gpu::store_shared(shared.flag_tile(tile) + warp, any_needed ? 1u : 0u);
  }

  // Second product, 16 rows at a time: A += G^T X in this warp's columns of D.
  ATTFC_DEVICE void add_rows(int tile) {
    constexpr int kSteps = kRows / 16, kStepWarps = Config::kWarps / kSteps;
    const Element* weights = shared.weight_tile(tile);
    ATTFC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t needed = 0;
      ATTFC_UNROLL
      for (int other = 0; other < kStepWarps; ++other) {
        needed |= gpu::load_shared(shared.flag_tile(tile) + step * kStepWarps + other);  // fault: flags_of_the_step
      }
      if (needed == 0) continue;
      const auto load_weights = [&](int m, uint32_t (&a)[4]) {
        // fault: weight_matrices
        const int row = 16 * step + lane % 8 + lane / 16 * 8, center = 16 * m + lane / 8 % 2 * 8;
        gpu::ldmatrix_x4_trans(weights + WeightTile<kCenters>::offset(row, center), a);  // fault: weights_transposed
      };
      add_weighted_rows<kDim>(sum, load_weights, shared.embedding_tile(tile), 16 * step,
                              warp * Config::kGradColumns / 8, lane);
    }
  }

  // The two elements of the centre tile under a fragment's (row, columns 2 (lane % 4) and + 1).
  ATTFC_DEVICE uint32_t* fragment_place(int center, int n) const {
    const int chunk = warp * Config::kGradColumns / 8 + n;
    return reinterpret_cast<uint32_t*>(shared.centers + Tile::offset(center, chunk)) + lane % 4;
  }
  ATTFC_DEVICE gpu::Float2 scaled_center(int center, int n, float factor) const {
    const uint32_t two = gpu::load_shared(fragment_place(center, n));
    return {factor * gpu::to_float(Element{static_cast<uint16_t>(two)}),
            factor * gpu::to_float(Element{static_cast<uint16_t>(two >> 16)})};
  }

  // A to out, which takes the centres' place in shared memory and leaves in whole lines.
  ATTFC_DEVICE void write() {
    const bool project = p.center_scale != nullptr;
    const float unscale = p.weight_scale != nullptr ? 1 / *p.weight_scale : 1.0f;
    if (project) {
      ATTFC_UNROLL
      for (int line = 0; line < 2 * kGroups; ++line) {
        const int center = 8 * line + lane / 4;
        const float factor = gpu::load_shared(shared.factors + center);
        float dot = 0;
        ATTFC_UNROLL
        for (int n = 0; n < kColumnBlocks; ++n) {
          const gpu::Float2 unit = scaled_center(center, n, factor);
          dot += sum[line / 2][n][line % 2 * 2] * unit.x + sum[line / 2][n][line % 2 * 2 + 1] * unit.y;
        }
        dot += gpu::shuffle_xor(dot, 1);
        dot += gpu::shuffle_xor(dot, 2);
        if (lane % 4 == 0) gpu::store_shared(shared.cosines + warp * kCenters + center, dot);
      }
      gpu::sync_block();  // fault: dots_barrier
    }
    ATTFC_UNROLL
    for (int line = 0; line < 2 * kGroups; ++line) {
      const int center = 8 * line + lane / 4;
      const float factor = gpu::load_shared(shared.factors + center);
      float along = 0;
      for (int other = 0; project && other < Config::kWarps; ++other) {
        along += gpu::load_shared(shared.cosines + other * kCenters + center);  // fault: dots_of_all_warps
      }
      ATTFC_UNROLL
      for (int n = 0; n < kColumnBlocks; ++n) {
        float low = sum[line / 2][n][line % 2 * 2], high = sum[line / 2][n][line % 2 * 2 + 1];
        if (project) {
          const gpu::Float2 unit = scaled_center(center, n, factor);
          low -= along * unit.x;  // fault: projection
          high -= along * unit.y;
        }
        // An empty slot's sum is 0, or NaN where an embedding is infinite.
        const float times = factor * unscale;  // fault: weight_unscale
        gpu::store_shared(fragment_place(center, n), factor == 0 ? 0u : gpu::pack<Element>(low * times, high * times));
      }
    }
    gpu::sync_block();  // fault: output_barrier
    Element* out = static_cast<Element*>(p.center_grad) + first_center * kDim;
    for (int index = thread; index < kCenters * Tile::kChunks; index += Config::kThreads) {
      const int center = index / Tile::kChunks, chunk = index % Tile::kChunks;
      if (first_center + center >= p.num_centers) break;  // fault: center_gradient_output_end
      *reinterpret_cast<gpu::Long2*>(out + center * kDim + chunk * 8) =
          gpu::load_shared(reinterpret_cast<const gpu::Long2*>(shared.centers + Tile::offset(center, chunk)));
    }
  }
};

template <class Config, class Element>
ATTFC_KERNEL(Config::kThreads, Config::kResidentBlocks)
center_gradient_kernel(const CenterGradientParameters parameters) {
  CenterGradientBlock<Config, Element>(parameters).run();
}

}  // namespace attfc::cuda
