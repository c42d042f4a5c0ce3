// The lse pass's kernel for sm_90a: all centres of a split past 128 embeddings, without the gradient.
//
// Computes, for each row b of the block and the negatives j of its split (csrc/partial_lse.h for the sums):
//     c_bj = s_j x_b . w_j           wgmma m64n128k16, float32 sums; s_j = center_scale_j, or 1
//     p_bj = exp(scale N(c_bj) - R)  float32; valid negatives only
// and leaves R, sum, moments, max cosine and hard count of the split to the merge, and log2 sum_j exp(scale N(c_bj)) of
// each tile of 128 centres in 16 bits (TileMass), from which the list of tiles that the gradient needs is made.
// Nothing is rounded to 16 bits on the way to lse. What an empty slot or an ignored row holds is read but not used.
//
// Grid: x = block of 128 rows, y = split. Threads: 3 warpgroups. Shared memory: LsePassShared (lse_pass_layout.h).
// Bound by the tensor cores: a tile of 128 x 128 at D 512 takes them 4096 cycles, shared memory the same, exponentials
// and sums about 2600 issue slots of each scheduler.
//
// Schedule. One thread copies steps of 128 centres x 64 columns by TMA as stages come free, a warp beside it labels and
// scales. Two consumer warpgroups hold 64 rows each and two accumulators a thread: while the tensor cores make tile t
// + 1 in one, the sums of tile t are made from the other, a part after each step. A stage is free when the products of
// the step after it are issued and its own are done. Threads keep a reference R of their own until the end, so that no
// step needs a shuffle; a tile's mass takes four.
#pragma once

#include "lse_pass.h"
#include "lse_pass_layout.h"
#include "partial_lanes.h"

namespace attfc::cuda {

template <class Config, class Element>
class LsePassBlock {
 public:
  ATTFC_DEVICE explicit LsePassBlock(const LsePassParameters& parameters)
      : p(parameters),
        shared(*gpu::SharedArena{}.take<LsePassShared<Config>>(1)),
        thread(static_cast<int>(gpu::thread_index())),
        lane(thread % gpu::kWarpSize),
        first_row(static_cast<int>(gpu::block_index_x()) * kLsePassRows),
        first_tile(static_cast<int>(gpu::block_index_y() * p.sweep.tiles_per_split)) {
    const int left = static_cast<int>((p.sweep.num_centers + kLsePassTile - 1) / kLsePassTile) - first_tile;
    const int most = static_cast<int>(p.sweep.tiles_per_split);
    tiles = left < 0 ? 0 : left < most ? left : most;
  }

  ATTFC_DEVICE void run() {
    if (thread == 0) init_barriers();
    gpu::sync_block();  // fault: lse_init_barrier
    if (thread < gpu::kWarpGroupSize) {
      gpu::lower_registers<Config::kProducerRegisters>();  // fault: lse_lower
      if (thread == 0) copy_operands();
      if (thread / gpu::kWarpSize == 1) write_numbers();
    } else {
      gpu::raise_registers<Config::kConsumerRegisters>();
      consume();
    }
  }

 private:
  static constexpr int kSteps = Config::kSteps, kStages = Config::kStages;
  static constexpr unsigned kStepBytes = kLsePassTile * gpu::kTileColumns * 2;
  static constexpr int kColumnBlocks = kLsePassTile / 8;              // of 8 centres, in an accumulator
  static constexpr int kPartBlocks = kColumnBlocks / Config::kSteps;  // summed after each step
  static constexpr float kLog2E = 1.4426950408889634f;
  using Accumulator = float[64];

  // A stage of the ring, and the parity of the phase of its barriers.
  struct Place {
    int stage = 0;
    unsigned parity = 0;
    ATTFC_DEVICE void advance() {
      if (++stage == kStages) stage = 0, parity ^= 1;  // fault: lse_parity_flips
    }
  };

  // A row as one of four lanes sees it: its sums over own columns, relative to a reference of its own.
  struct Row {
    int64_t label;  // below 0: ignored, or past the end
    RowModulation<float> modulation;
    float reference, sum, moment_quad, moment_lin, moment_const, max_cosine, tile_mass;
    int hard_count;
  };

  const LsePassParameters& p;
  LsePassShared<Config>& shared;
  int thread, lane;
  int first_row, first_tile, tiles;  // TMA's coordinates have 32 bits, and so has everything here

  ATTFC_DEVICE void init_barriers() {
    constexpr unsigned kWarps = Config::kConsumers * 4;
    gpu::barrier_init(&shared.embeddings_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      gpu::barrier_init(&shared.full[stage], 1);
      gpu::barrier_init(&shared.empty[stage], kWarps);  // fault: lse_empty_arrivals
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
      gpu::barrier_init(&shared.numbers_full[buffer], gpu::kWarpSize);
      gpu::barrier_init(&shared.numbers_empty[buffer], Config::kConsumers * gpu::kWarpGroupSize);
    }
    gpu::fence_barrier_init();  // fault: lse_init_fence
  }

  // Producer, one thread.
  ATTFC_DEVICE void copy_operands() {
    if (tiles == 0) return;
    gpu::barrier_arrive_expect_tx(&shared.embeddings_full, kSteps * kStepBytes);
    for (int step = 0; step < kSteps; ++step) {
      gpu::copy_tile(shared.embeddings[step], p.embeddings, &shared.embeddings_full, step * gpu::kTileColumns,
                     first_row);
    }
    Place place;
    for (int tile = 0; tile < tiles; ++tile) {
      const int center = (first_tile + tile) * kLsePassTile;
      for (int step = 0; step < kSteps; ++step, place.advance()) {
        gpu::barrier_wait(&shared.empty[place.stage], place.parity ^ 1);       // fault: lse_empty_wait
        gpu::barrier_arrive_expect_tx(&shared.full[place.stage], kStepBytes);  // fault: lse_step_bytes
        // fault: lse_step_copy
        gpu::copy_tile(shared.centers[place.stage], p.centers, &shared.full[place.stage], step * gpu::kTileColumns,
                       center);
      }
    }
  }

  // Producer, one warp.
  ATTFC_DEVICE void write_numbers() {
    const float* scales = static_cast<const float*>(p.sweep.center_scale);
    for (int tile = 0; tile < tiles; ++tile) {
      auto& numbers = shared.numbers[tile & 1];
      // fault: lse_numbers_wait
      gpu::barrier_wait(&shared.numbers_empty[tile & 1], (static_cast<unsigned>(tile) >> 1 & 1) ^ 1);
      for (int index = lane; index < kLsePassTile; index += gpu::kWarpSize) {
        const int center = (first_tile + tile) * kLsePassTile + index;
        const bool inside = center < p.sweep.num_centers;  // fault: lse_center_end
        gpu::store_shared(numbers.labels + index, inside ? p.sweep.center_labels[center] : int64_t{-1});
        gpu::store_shared(numbers.scales + index, inside && scales != nullptr ? scales[center] : 1.0f);
      }
      gpu::barrier_arrive(&shared.numbers_full[tile & 1]);
    }
  }

  ATTFC_DEVICE void consume() {
    const int own_row = (thread - gpu::kWarpGroupSize) / gpu::kWarpSize * 16 + lane / 4;
    Row rows[2];
    load_row(rows[0], first_row + own_row);
    load_row(rows[1], first_row + own_row + 8);
    if (tiles > 0) {
      Accumulator first = {}, second = {};
      Place place;
      gpu::barrier_wait(&shared.embeddings_full, 0);  // fault: lse_embeddings_wait
      multiply<false>(0, place, first, second, rows, own_row);
      int tile = 1;
      for (; tile + 1 < tiles; tile += 2) {
        multiply<true>(tile, place, second, first, rows, own_row);
        multiply<true>(tile + 1, place, first, second, rows, own_row);
      }
      if (tile < tiles) {
        multiply<true>(tile, place, second, first, rows, own_row);
        gpu::wgmma_wait<0>(second);
        sum_tile(tile, second, rows, own_row);
      } else {
        gpu::wgmma_wait<0>(first);
        sum_tile(tile - 1, first, rows, own_row);
      }
    }
    write(rows[0], first_row + own_row);
    write(rows[1], first_row + own_row + 8);
  }

  // Issues the products of a tile, `now`, and meanwhile sums the tile before it, `before`.
  template <bool sums>
  ATTFC_DEVICE void multiply(int tile, Place& place, Accumulator& now, Accumulator& before, Row (&rows)[2],
                             int own_row) {
    // 64 rows of 128 bytes in every step. Made anew for each tile: kept over tiles, the sums of its 4 kSteps places are
    // worth a register each to the compiler, which then spills.
    const int group = gpu::uniform(thread / gpu::kWarpGroupSize) - 1;
    const gpu::Operand own = gpu::swizzled_operand(shared.embeddings[0] + 64 * group * gpu::kTileColumns);
    const gpu::Operand centers = gpu::swizzled_operand(shared.centers[0]);
    ATTFC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      gpu::barrier_wait(&shared.full[place.stage], place.parity);  // fault: lse_full_wait
      const gpu::Operand right = centers.at(place.stage * static_cast<int>(kStepBytes));
      gpu::wgmma_fence();  // fault: lse_wgmma_fence
      ATTFC_UNROLL
      for (int k = 0; k < gpu::kTileColumns / 16; ++k) {
        const gpu::Operand a = own.at(step * static_cast<int>(kStepBytes) + 32 * k);
        const gpu::Operand b = right.at(32 * k);  // fault: lse_operands
        if (step == 0 && k == 0) {
          gpu::wgmma_64x128x16<Element, false>(now, a, b);
        } else {
          gpu::wgmma_64x128x16<Element, true>(now, a, b);  // fault: lse_accumulates
        }
      }
      gpu::wgmma_commit();
      if (sums && step == 0) {
        gpu::wgmma_wait<1>(before);  // fault: lse_wait_of_sums
      } else {
        gpu::wgmma_wait<1>();  // fault: lse_wait_of_stage
      }
      // The products of the step before are done.
      if (lane == 0 && (step > 0 || sums)) {
        const int other = place.stage == 0 ? kStages - 1 : place.stage - 1;  // fault: lse_released_stage
        gpu::barrier_arrive(&shared.empty[other]);
      }
      place.advance();
      if constexpr (sums) sum_part(tile - 1, step, before, rows, own_row);
    }
  }

  ATTFC_DEVICE void sum_tile(int tile, const Accumulator& dots, Row (&rows)[2], int own_row) {
    ATTFC_UNROLL
    for (int part = 0; part < kSteps; ++part) sum_part(tile, part, dots, rows, own_row);
  }

  // Sums the columns of one of kSteps parts of a tile; the last part of them finishes it.
  ATTFC_DEVICE void sum_part(int tile, int part, const Accumulator& dots, Row (&rows)[2], int own_row) {
    const auto& numbers = shared.numbers[tile & 1];
    // fault: lse_numbers_full
    if (part == 0) gpu::barrier_wait(&shared.numbers_full[tile & 1], static_cast<unsigned>(tile) >> 1 & 1);
    ATTFC_UNROLL
    for (int block = part * kPartBlocks; block < (part + 1) * kPartBlocks; block += 2) {
      int64_t labels[4];
      float scales[4];
      ATTFC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int column = 8 * (block + half) + lane % 4 * 2;
        const gpu::Long2 label = gpu::load_shared(reinterpret_cast<const gpu::Long2*>(numbers.labels + column));
        const gpu::Float2 scale = gpu::load_shared(reinterpret_cast<const gpu::Float2*>(numbers.scales + column));
        labels[2 * half] = label.x, labels[2 * half + 1] = label.y;
        scales[2 * half] = scale.x, scales[2 * half + 1] = scale.y;
      }
      ATTFC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = 4 * block + 2 * half;  // fault: lse_accumulator_rows
        const float cosines[4] = {dots[at] * scales[0], dots[at + 1] * scales[1], dots[at + 4] * scales[2],
                                  dots[at + 5] * scales[3]};
        add(rows[half], cosines, labels);
      }
    }
    if (part + 1 == kSteps) {
      gpu::barrier_arrive(&shared.numbers_empty[tile & 1]);
      write_mass(rows[0], tile, own_row);
      write_mass(rows[1], tile, own_row + 8);
    }
  }

  ATTFC_DEVICE void add(Row& row, const float (&cosines)[4], const int64_t (&labels)[4]) const {
    float logits[4], largest = -INFINITY;
    bool valid[4];
    ATTFC_UNROLL
    for (int i = 0; i < 4; ++i) {
      float slope;
      modulate(row.modulation, cosines[i], logits[i], slope);
      logits[i] *= p.sweep.scale;
      valid[i] = labels[i] >= 0 && labels[i] != row.label && row.label >= 0;  // fault: lse_valid_negative
      if (valid[i]) {
        largest = fmaxf(largest, logits[i]);
        row.max_cosine = fmaxf(row.max_cosine, cosines[i]);
      }
    }
    if (must_move(largest, row.reference)) move(row, largest);
    ATTFC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float probability = valid[i] ? gpu::exp2_approx((logits[i] - row.reference) * kLog2E) : 0.0f;
      row.tile_mass += probability;
      if (valid[i] && cosines[i] > row.modulation.threshold) {
        row.moment_const += probability;
        row.moment_lin += probability * cosines[i];
        row.moment_quad += probability * cosines[i] * cosines[i];
        ++row.hard_count;
      }
    }
  }

  ATTFC_DEVICE static void move(Row& row, float reference) {
    const float factor = move_factor(row.reference, reference);
    row.reference = reference;
    row.sum *= factor;
    row.moment_quad *= factor;
    row.moment_lin *= factor;
    row.moment_const *= factor;
    row.tile_mass *= factor;  // fault: lse_tile_mass_moves
  }

  ATTFC_DEVICE void load_row(Row& out, int row) const {
    out.label = row < p.sweep.num_rows ? p.sweep.labels[row] : -1;
    const bool live = out.label >= 0;  // an ignored row's numbers may be anything
    out.modulation = live ? p.sweep.modulation<float>(row) : no_modulation<float>();
    out.reference = live ? p.sweep.target_logit<float>(row) : -INFINITY;
    out.sum = out.moment_quad = out.moment_lin = out.moment_const = out.tile_mass = 0;
    out.max_cosine = -INFINITY;
    out.hard_count = 0;
  }

  // A tile's sum joins the row's; its logarithm, over the four lanes, is kept for the list.
  ATTFC_DEVICE void write_mass(Row& row, int tile, int own_row) const {
    row.sum += row.tile_mass;
    float reference = row.tile_mass > 0 ? row.reference : -INFINITY;
    reference = fmaxf(reference, gpu::shuffle_xor(reference, 1));
    reference = fmaxf(reference, gpu::shuffle_xor(reference, 2));
    float mass = row.tile_mass > 0 ? row.tile_mass * gpu::exp2_approx((row.reference - reference) * kLog2E) : 0.0f;
    mass += gpu::shuffle_xor(mass, 1);
    mass += gpu::shuffle_xor(mass, 2);
    row.tile_mass = 0;
    if (lane % 4 != 0) return;
    const float log2_mass = mass > 0 ? reference * kLog2E + log2f(mass) : -INFINITY;
    p.mass[static_cast<int64_t>(first_tile + tile) * p.mass_rows + first_row + own_row] = TileMass::encode(log2_mass);
  }

  ATTFC_DEVICE void write(const Row& row, int at_row) const {
    PartialLse<float> total = {row.reference,    row.sum, row.moment_quad, row.moment_lin,
                               row.moment_const, 0,       row.max_cosine,  row.hard_count};
    float keep, add;
    merge(total, of_other_lane(total, 1), keep, add);
    merge(total, of_other_lane(total, 2), keep, add);
    if (lane % 4 != 0 || at_row >= p.sweep.num_rows) return;
    write_partial(p.sweep.partial, gpu::block_index_y() * p.sweep.num_rows + at_row, total);
  }
};

template <class Config, class Element>
ATTFC_KERNEL(Config::kThreads, 1)
lse_pass_kernel(ATTFC_GRID_CONSTANT const LsePassParameters parameters) {
  if constexpr (gpu::kSm90a) LsePassBlock<Config, Element>(parameters).run();
}

}  // namespace attfc::cuda
