// The sweep kernel: one pass over a part of the class centres for a block of embeddings.
//
// Computes, for each row b of the block and the negatives j of its split (csrc/partial_lse.h for the sums):
//     c_bj = s_j x_b . w_j               first product, mma m16n8k16, float32 sums; s_j = center_scale_j, or 1
//     p_bj = exp(scale N(c_bj) - R_b)    float32; valid negatives only, 0 otherwise
//     O_b += sum_j p_bj N'(c_bj) s_j w_j second product; p N' s rounded to the operands' 16 bits, float32 sums
// and leaves R, sum, moments, omitted, max cosine, hard count and O of this split to the merge (merge.cu).
//
// Grid: x = block of kRows rows, y = split. Blocks of a split start together and share its centres through L2.
// Threads: 4 kRows. Shared memory: SweepShared (sweep_layout.h). Registers: O takes kRows kDim / kThreads = kDim / 4.
// Bound by the tensor cores and, close behind, by shared memory reads of the first product (csrc/README.md).
//
// Schedule. Tiles of kTile centres flow through three steps, one interval each, one barrier between intervals:
//     interval i:   logits of tile i + 1  |  weights of tile i  |  gradient of tile i - 1  |  loading tile i + 2
// Steps of one interval do not depend on each other, so tensor cores, exponentials and copies overlap as warps drift.
// The fourth stage of centres is what the loading needs; with three, a second barrier follows the gradient step, and
// copies are issued and waited for there. Either way a copy has all three steps of an interval to land in. Four
// neighbouring lanes own a row in the weights step: its reference moves, and it agrees to leave a tile out of the
// gradient, without talking to another warp. Both reach the gradient step an interval later, as flags.
#pragma once

#include "sweep_layout.h"
#include "sweep_parameters.h"

namespace attfc::cuda {

template <class Config, class Element, bool grad>
class SweepBlock {
 public:
  ATTFC_DEVICE explicit SweepBlock(const SweepParameters& parameters)
      : p(parameters),
        shared(gpu::SharedArena{}),
        thread(static_cast<int>(gpu::thread_index())),
        warp(thread / gpu::kWarpSize),
        lane(thread % gpu::kWarpSize),
        first_row(static_cast<int64_t>(gpu::block_index_x()) * kRows) {  // fault: block_rows
    if (p.live.lists != nullptr) {
      const int64_t all = p.live.counts[gpu::block_index_x()], split = gpu::block_index_y();
      first_center = all * split / p.splits;  // in the list
      tiles = static_cast<int>(all * (split + 1) / p.splits - first_center) * kParts;
      return;
    }
    const int64_t first_tile = gpu::block_index_y() * p.tiles_per_split;
    const int64_t left = (p.num_centers + kTile - 1) / kTile - first_tile;
    tiles = static_cast<int>(left < 0 ? 0 : left < p.tiles_per_split ? left : p.tiles_per_split);
    first_center = first_tile * kTile;
  }

  ATTFC_DEVICE void run() {
    load_row();
    load_embeddings();
    load_labels(0);
    load_labels(1);
    wait_for_copies();
    load_centers(0);
    wait_for_copies();
    for (int now = -1; now <= tiles; ++now) {
      if constexpr (!kLoadsMidway) load_next(now);
      uint32_t flags = 0;
      if constexpr (grad) {
        if (now >= 1) add_gradient(now - 1, flags = read_flags(now - 1));
      }
      if constexpr (kLoadsMidway) {
        wait_for_copies();  // fault: sweep_midway_wait
        load_next(now);
      }
      if (now + 1 < tiles) logits(now + 1);
      if (now >= 1 && (flags & kNeeded) == 0) part.omitted += pending_mass;  // fault: omitted_mass
      if (now >= 0 && now < tiles) weigh(now);
      if constexpr (kLoadsMidway) {
        gpu::sync_block();  // fault: sweep_midway_end
      } else {
        wait_for_copies();
      }
    }
    write();
  }

 private:
  static constexpr int kRows = Config::kRows, kTile = Config::kTile, kDim = Config::kDim;
  static constexpr int kGradRowGroups = kRows / 16, kGradPairs = Config::kGradColumns / 16;
  static constexpr int kParts = kLiveTile / kTile;  // tiles of an entry of the list
  static constexpr bool kLoadsMidway = grad && Config::kStages == 3;
  static constexpr uint32_t kNeeded = 1, kMoved = 2;  // flags of a warp's rows for a tile
  static constexpr float kLog2E = 1.4426950408889634f;

  const SweepParameters& p;
  SweepShared<Config, Element, grad> shared;
  int thread, warp, lane;
  int64_t first_row, first_center;  // of a list of live tiles: the first entry
  int tiles;

  // The row this thread owns with its three neighbours; moments, max_cosine and hard_count are this thread's share. The
  // count is kept in 32 bits beside `part`: no GPU holds 2^31 centres of one thread.
  PartialLse<float> part;
  RowModulation<float> modulation;
  int64_t row_label;  // below 0: ignored, or past the end
  float target_mass, row_scale, pending_mass = 0;
  int hard_count = 0;

  // This warp's columns of O: 16 rows x 8 columns an mma fragment.
  float gradient[grad ? kGradRowGroups : 1][grad ? 2 * kGradPairs : 1][4] = {};

  ATTFC_DEVICE void load_row() {
    const int64_t row = first_row + thread / 4;
    row_label = row < p.num_rows ? p.labels[row] : -1;  // fault: sweep_label_end
    const bool live = row_label >= 0;                   // an ignored row's numbers may be anything
    modulation = live ? p.modulation<float>(row) : no_modulation<float>();
    const bool lse_is_known = p.live.lists != nullptr;
    if (lse_is_known && live && p.live.lse[row] == -INFINITY) row_label = -1;  // it has no negatives that count
    part = empty_partial(WeightRange<Element>::kStartsAtTarget || lse_is_known ? target() : -INFINITY);
    row_scale = WeightRange<Element>::row_scale(modulation.quad, modulation.lin);
    update_target_mass();
  }

  // The row's target logit, or -inf; its lse where that is known. Read again when the reference moves: a register for
  // it would spill.
  ATTFC_DEVICE float target() const {
    if (row_label >= 0 && p.live.lists != nullptr) return p.live.lse[first_row + thread / 4];
    // fault: ignored_row
    return row_label >= 0 ? p.target_logit<float>(first_row + thread / 4) : -INFINITY;
  }

  // This split's share of exp(target - R): what all splits omit stays under the tolerance.
  ATTFC_DEVICE void update_target_mass() {
    const float logit = target();
    // fault: target_mass_of_split
    target_mass = logit == -INFINITY ? 0 : expf(logit - part.reference) / static_cast<float>(p.splits);
  }

  ATTFC_DEVICE void wait_for_copies() {
    gpu::cp_async_commit();   // fault: sweep_commit
    gpu::cp_async_wait<0>();  // fault: sweep_wait
    gpu::sync_block();        // fault: sweep_barrier
  }

  ATTFC_DEVICE void load_next(int now) {
    if (now + 2 >= tiles) return;
    load_centers(now + 2);
    load_labels(now + 3);
  }

  // The first centre of a tile.
  ATTFC_DEVICE int64_t center_of(int tile) const {
    if (p.live.lists == nullptr) return first_center + static_cast<int64_t>(tile) * kTile;
    if (tile >= tiles) return p.num_centers;
    const int* list = p.live.lists + static_cast<int64_t>(gpu::block_index_x()) * p.live.num_tiles + first_center;
    return static_cast<int64_t>(list[tile / kParts]) * kLiveTile + tile % kParts * kTile;  // fault: live_tile_parts
  }

  ATTFC_DEVICE void load_embeddings() {
    using Tile = OperandTile<kDim>;
    const Element* source = static_cast<const Element*>(p.embeddings);
    for (int index = thread; index < kRows * Tile::kChunks; index += Config::kThreads) {  // fault: embedding_copy
      const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
      const bool live = first_row + row < p.num_rows;
      gpu::cp_async_16(shared.embeddings + Tile::offset(row, chunk),
                       source + (live ? (first_row + row) * p.embedding_stride + chunk * 8 : 0), live);
    }
  }

  // Labels come a tile ahead of their centres, so that an empty slot's content is never read.
  ATTFC_DEVICE void load_labels(int tile) {
    if (thread >= kTile) return;
    const int64_t center = center_of(tile) + thread;
    int64_t* slot = shared.label_tile(tile) + thread;
    if (tile < tiles && center < p.num_centers) {  // fault: sweep_center_label_end
      gpu::cp_async_8(slot, p.center_labels + center, true);
      if (p.center_scale != nullptr)
        gpu::cp_async_4(shared.scale_tile(tile) + thread, static_cast<const float*>(p.center_scale) + center, true);
    } else {
      gpu::store_shared(slot, int64_t{-1});
    }
  }

  ATTFC_DEVICE void load_centers(int tile) {
    using Tile = OperandTile<kDim>;
    if (tile >= tiles) return;
    const Element* source = static_cast<const Element*>(p.centers);
    const int64_t first = center_of(tile);
    Element* target_tile = shared.center_tile(tile % Config::kStages);  // fault: stage_reuse
    const int64_t* center_label = shared.label_tile(tile);
    static_assert(kTile * Tile::kChunks % Config::kThreads == 0);
    ATTFC_UNROLL
    for (int step = 0; step < kTile * Tile::kChunks / Config::kThreads; ++step) {
      const int index = thread + step * Config::kThreads;
      const int row = index / Tile::kChunks, chunk = index % Tile::kChunks;
      const bool live = gpu::load_shared(center_label + row) >= 0;  // fault: sweep_live_slot
      gpu::cp_async_16(target_tile + Tile::offset(row, chunk),
                       source + (live ? (first + row) * p.center_stride + chunk * 8 : 0), live);  // fault: sweep_offset
    }
  }

  // First product: this warp's part of the tile's x_b . w_j, to shared memory.
  ATTFC_DEVICE void logits(int tile) {
    Config::Product::run(shared.embeddings, shared.center_tile(tile % Config::kStages), shared.logit_tile(tile), warp,
                         lane);
  }

  // Sums over the four lanes of a row: the same bits in each.
  ATTFC_DEVICE static float row_sum(float value) {
    value += gpu::shuffle_xor(value, 1);
    return value + gpu::shuffle_xor(value, 2);
  }
  ATTFC_DEVICE static float row_max(float value) {
    value = fmaxf(value, gpu::shuffle_xor(value, 1));
    return fmaxf(value, gpu::shuffle_xor(value, 2));  // fault: row_lanes_agree
  }

  ATTFC_DEVICE static float component(const gpu::Float4& four, int i) {
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
  }

  // center_scale of this thread's columns k .. k + 3; of an empty slot it may be anything.
  ATTFC_DEVICE gpu::Float4 own_scales(int tile, int k) const {
    return gpu::load_shared(
        reinterpret_cast<const gpu::Float4*>(shared.scale_tile(tile) + thread % 4 * 4 + k / 4 * 16));
  }

  // From cosines to p and p N' s. This thread's columns: 4 (lane % 4) + 16 k .. + 3.
  ATTFC_DEVICE void weigh(int tile) {
    constexpr int kOwn = kTile / 4;
    const int row = thread / 4, column = thread % 4 * 4;
    const bool scaled = p.center_scale != nullptr;
    float cosine[kOwn], slope[kOwn], logit[kOwn];
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; k += 4) {
      gpu::Float4 dot = Config::Product::read(shared.logit_tile(tile), row, column + 4 * k);
      if (scaled) {
        const gpu::Float4 by = own_scales(tile, k);
        dot = {dot.x * by.x, dot.y * by.y, dot.z * by.z, dot.w * by.w};
      }
      cosine[k] = dot.x, cosine[k + 1] = dot.y, cosine[k + 2] = dot.z, cosine[k + 3] = dot.w;
    }

    uint32_t valid = 0, hard = 0;
    float largest = -INFINITY;
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const gpu::Long2* labels = reinterpret_cast<const gpu::Long2*>(shared.label_tile(tile) + column + k / 4 * 16);
      const gpu::Long2 two = gpu::load_shared(labels + k % 4 / 2);
      const int64_t label = k % 2 == 0 ? two.x : two.y;
      const bool is_valid = label >= 0 && label != row_label && row_label >= 0;  // fault: valid_negative
      const bool is_hard = is_valid && cosine[k] > modulation.threshold;
      float modulated;
      modulate(modulation, cosine[k], modulated, slope[k]);
      logit[k] = p.scale * modulated;
      valid |= (is_valid ? 1u : 0u) << k;
      hard |= (is_hard ? 1u : 0u) << k;
      if (is_valid) {
        largest = fmaxf(largest, logit[k]);
        part.max_cosine = fmaxf(part.max_cosine, cosine[k]);
      }
      hard_count += is_hard ? 1 : 0;
    }

    float factor = 1;
    if (WeightRange<Element>::kCarriesScale && grad && scaled) {
      // The largest weight this tile may have, not only the largest p, must stay in reach of R.
      float widest = 1;
      ATTFC_UNROLL
      for (int k = 0; k < kOwn; k += 4) {
        const gpu::Float4 by = own_scales(tile, k);
        ATTFC_UNROLL
        for (int i = 0; i < 4; ++i) widest = (valid >> (k + i) & 1) != 0 ? fmaxf(widest, component(by, i)) : widest;
      }
      largest += logf(widest);  // fault: scale_of_reference
    }
    largest = row_max(largest);  // fault: row_shuffle
    // must_move() at the distance of this format.
    if (must_move(largest + (kSafeDistance - WeightRange<Element>::kDistance), part.reference)) {
      factor = move_factor(part.reference, largest);
      move_reference(part, largest);  // fault: reference_moves
      update_target_mass();
    }

    float mass = 0;
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const float probability = (valid >> k & 1) != 0 ? gpu::exp2_approx((logit[k] - part.reference) * kLog2E) : 0.0f;
      mass += probability;
      if ((hard >> k & 1) != 0) {
        part.moment_const += probability;
        part.moment_lin += probability * cosine[k];
        part.moment_quad += probability * cosine[k] * cosine[k];
      }
      slope[k] = (valid >> k & 1) != 0 ? slope[k] * probability * row_scale : 0.0f;
    }
    mass = row_sum(mass);
    part.sum += mass;

    if constexpr (grad) {
      Element* weights = shared.weight_tile(tile);
      ATTFC_UNROLL
      for (int k = 0; k < kOwn; k += 4) {
        if (scaled) {
          const gpu::Float4 by = own_scales(tile, k);
          ATTFC_UNROLL
          // fault: scaled_weight
          for (int i = k; i < k + 4; ++i) slope[i] = (valid >> i & 1) != 0 ? slope[i] * component(by, i - k) : 0.0f;
        }
        const gpu::Word2 four = {gpu::pack<Element>(slope[k], slope[k + 1]),
                                 gpu::pack<Element>(slope[k + 2], slope[k + 3])};
        gpu::store_shared(reinterpret_cast<gpu::Word2*>(weights + WeightTile<kTile>::offset(row, column + 4 * k)),
                          four);
      }
      pending_mass = mass;
      const bool needed = !may_omit(part.omitted, mass, part.sum, target_mass, p.grad_tolerance);
      const bool any_needed = gpu::warp_any(needed), any_moved = gpu::warp_any(factor != 1);
      if (thread % 4 == 0) gpu::store_shared(shared.factor_tile(tile) + row, factor);
      if (lane == 0)
        // fault: needed_tile
        gpu::store_shared(shared.flag_tile(tile) + warp, (any_needed ? kNeeded : 0u) | (any_moved ? kMoved : 0u));
    }
  }

  ATTFC_DEVICE uint32_t read_flags(int tile) const {
    uint32_t flags = 0;
    ATTFC_UNROLL
    // fault: flags_of_all_warps
    for (int other = 0; other < Config::kWarps; ++other) flags |= gpu::load_shared(shared.flag_tile(tile) + other);
    return flags;
  }

  // Second product: O = O * factor + weights * centres, in this warp's columns of D.
  ATTFC_DEVICE void add_gradient(int tile, uint32_t flags) {
    if ((flags & kMoved) != 0) scale_gradient(shared.factor_tile(tile));  // fault: gradient_moves
    if ((flags & kNeeded) == 0) return;
    const Element* weights = shared.weight_tile(tile);
    const Element* centers = shared.center_tile(tile % Config::kStages);
    ATTFC_UNROLL
    for (int step = 0; step < kTile / 16; ++step) {
      const auto load_weights = [&](int m, uint32_t (&a)[4]) {
        gpu::ldmatrix_x4(weights + WeightTile<kTile>::offset(16 * m + lane % 16, 16 * step + lane / 16 * 8), a);
      };
      add_weighted_rows<kDim>(gradient, load_weights, centers, 16 * step, warp * Config::kGradColumns / 8, lane);
    }
  }

  ATTFC_DEVICE void scale_gradient(const float* factors) {
    ATTFC_UNROLL
    for (int m = 0; m < kGradRowGroups; ++m) {
      const float upper = gpu::load_shared(factors + 16 * m + lane / 4);
      const float lower = gpu::load_shared(factors + 16 * m + 8 + lane / 4);
      ATTFC_UNROLL
      for (int n = 0; n < 2 * kGradPairs; ++n) {  // fault: gradient_registers
        gradient[m][n][0] *= upper;
        gradient[m][n][1] *= upper;
        gradient[m][n][2] *= lower;
        gradient[m][n][3] *= lower;
      }
    }
  }

  ATTFC_DEVICE void write() {
    const int64_t split_start = static_cast<int64_t>(gpu::block_index_y()) * p.num_rows;
    const int64_t row = first_row + thread / 4;
    const float max_cosine = row_max(part.max_cosine);
    const float moment_quad = row_sum(part.moment_quad), moment_lin = row_sum(part.moment_lin);
    const float moment_const = row_sum(part.moment_const);
    long long row_hard_count = hard_count;
    row_hard_count += gpu::shuffle_xor(row_hard_count, 1);
    row_hard_count += gpu::shuffle_xor(row_hard_count, 2);
    if (thread % 4 == 0 && row < p.num_rows) {
      const int64_t at = split_start + row;
      p.partial.reference[at] = part.reference;
      p.partial.sum[at] = part.sum;
      p.partial.moment_quad[at] = moment_quad;
      p.partial.moment_lin[at] = moment_lin;
      p.partial.moment_const[at] = moment_const;
      p.partial.omitted[at] = part.omitted;
      p.partial.max_cosine[at] = max_cosine;
      p.partial.hard_count[at] = row_hard_count;
    }
    if constexpr (grad) {
      if constexpr (!WeightRange<Element>::kStartsAtTarget) {
        if (thread % 4 == 0) gpu::store_shared(shared.factor_tile(0) + thread / 4, 1 / row_scale);
        gpu::sync_block();                      // fault: row_scale_barrier
        scale_gradient(shared.factor_tile(0));  // fault: row_scale_undone
      }
      ATTFC_UNROLL
      for (int m = 0; m < kGradRowGroups; ++m) {
        ATTFC_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int64_t out_row = first_row + 16 * m + 8 * half + lane / 4;
          if (out_row >= p.num_rows) continue;  // fault: sweep_output_end
          float* out = p.partial.gradient + (split_start + out_row) * kDim + warp * Config::kGradColumns + lane % 4 * 2;
          ATTFC_UNROLL
          for (int n = 0; n < 2 * kGradPairs; ++n) {
            *reinterpret_cast<gpu::Float2*>(out + 8 * n) = {gradient[m][n][2 * half], gradient[m][n][2 * half + 1]};
          }
        }
      }
    }
  }
};

template <class Config, class Element, bool grad>
ATTFC_KERNEL(Config::kThreads, Config::kResidentBlocks)
sweep_kernel(const SweepParameters parameters) {
  SweepBlock<Config, Element, grad>(parameters).run();
}

}  // namespace attfc::cuda
