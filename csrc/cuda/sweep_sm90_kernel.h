// The sweep's kernel for sm_90a: what sweep_kernel.h computes with the gradient, both products by wgmma.
//
//     c_bj = s_j x_b . w_j               m64n32k16, float32 sums
//     p_bj = exp(scale N(c_bj) - R_b)    float32; valid negatives only, 0 otherwise
//     O_b += sum_j p_bj N'(c_bj) s_j w_j m64n128k16; p N' s rounded to the operands' 16 bits, float32 sums
//
// over all centres of a split, or over its share of the live tiles with R = lse (sweep_parameters.h).
//
// Grid: x = block of 64 rows, y = split. Threads: 3 warpgroups. Shared memory: SweepSm90Shared (sweep_sm90_layout.h).
// Registers: O takes kDim / 4 of a consumer's 232. Bound by shared memory reads, and by the exponentials that nothing
// hides (csrc/README.md).
//
// Schedule. One thread copies halves of tiles (32 centres) by TMA as they come free, a warp beside it writes labels and
// scales, and zeros over empty slots: 0 x NaN would reach O. Of two consumer warpgroups each makes the logits of its
// own half of a tile for all rows and turns them into weights; the weights of both are one operand of the second
// product, in which each owns half of the columns of O. They meet once a tile, when the weights are written:
//     logits of tile t  |  weights of tile t, meet  |  O += weights of t  and, behind it, logits of tile t + 1
// A half is free when both have added it to O, which is known a product later.
//
// What a thread sums, it sums over its own columns alone, and its share of the tolerance is its own too: no step needs
// a shuffle. Only the reference R of a row is common, for O is. A thread that must move it says so with its warp's
// flags; then all rows agree on their references, O and the sums move, and the tile's weights are written again.
#pragma once

#include "partial_lanes.h"
#include "sweep_sm90.h"
#include "sweep_sm90_layout.h"

namespace attfc::cuda {

template <class Config, class Element>
class SweepSm90Block {
 public:
  ATTFC_DEVICE explicit SweepSm90Block(const SweepSm90Parameters& parameters)
      : maps(parameters),
        p(parameters.sweep),
        shared(*gpu::SharedArena{}.take<SweepSm90Shared<Config>>(1)),
        thread(static_cast<int>(gpu::thread_index())),
        lane(thread % gpu::kWarpSize),
        first_row(static_cast<int>(gpu::block_index_x()) * kSm90Rows) {
    const int64_t split = gpu::block_index_y();
    if (p.live.lists != nullptr) {
      const int64_t all = p.live.counts[gpu::block_index_x()];
      first = static_cast<int>(all * split / p.splits);
      tiles = (static_cast<int>(all * (split + 1) / p.splits) - first) * (kLiveTile / kSm90Tile);
    } else {
      first = static_cast<int>(split * p.tiles_per_split);
      const int left = static_cast<int>((p.num_centers + kSm90Tile - 1) / kSm90Tile) - first;
      tiles = left < 0 ? 0 : left < p.tiles_per_split ? left : static_cast<int>(p.tiles_per_split);
    }
  }

  ATTFC_DEVICE void run() {
    if (thread == 0) init_barriers();
    if (thread < kSm90Rows) write_row(thread);
    gpu::sync_block();  // fault: sm90_init_barrier
    if (thread < gpu::kWarpGroupSize) {
      gpu::lower_registers<Config::kProducerRegisters>();
      if (thread == 0) copy_operands();
      if (thread / gpu::kWarpSize == 1) write_numbers();
    } else {
      gpu::raise_registers<Config::kConsumerRegisters>();
      consume();
    }
  }

 private:
  using Shared = SweepSm90Shared<Config>;
  using Numbers = typename Shared::Numbers;
  using Range = WeightRange<Element>;
  static constexpr int kSteps = Config::kSteps, kStages = Config::kStages;
  static constexpr int kEmbeddingBytes = sizeof(typename Shared::EmbeddingStep);
  static constexpr int kCenterBytes = sizeof(typename Shared::CenterStep);
  static constexpr int kWarps = Config::kConsumers * 4;
  static constexpr int kOwn = kSm90Half / 4;  // columns of a row that a thread owns
  static constexpr int kThreadsOfRow = 4 * Config::kConsumers;
  static constexpr uint32_t kNeeded = 1, kMoves = 2;  // flags of a warp's rows for a tile
  static constexpr float kLog2E = 1.4426950408889634f;

  // A row as one of its eight threads sees it: sums over own columns, relative to the row's common reference.
  struct Row {
    float reference, sum, moment_quad, moment_lin, moment_const, omitted, max_cosine;
    float largest, pending_mass;  // of the tile in hand
    float target_mass;
    int hard_count;
  };

  const SweepSm90Parameters& maps;
  const SweepParameters& p;
  Shared& shared;
  int thread, lane;
  int first_row, first, tiles;  // first: tile, or entry of the list; TMA's coordinates have 32 bits

  ATTFC_DEVICE void init_barriers() {
    gpu::barrier_init(&shared.embeddings_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      gpu::barrier_init(&shared.full[stage], 1);
      gpu::barrier_init(&shared.numbers_full[stage], gpu::kWarpSize);
      gpu::barrier_init(&shared.empty[stage], kWarps);  // fault: sm90_empty_arrivals
    }
    gpu::barrier_init(&shared.weights_full, Config::kConsumers * gpu::kWarpGroupSize);
    gpu::barrier_init(&shared.moved, Config::kConsumers * gpu::kWarpGroupSize);
    gpu::barrier_init(&shared.halves_full, gpu::kWarpGroupSize);
    gpu::fence_barrier_init();
  }

  // The first centre of a half of a tile; halves are counted over the split.
  ATTFC_DEVICE int center_of(int half) const {
    if (p.live.lists == nullptr) return first * kSm90Tile + half * kSm90Half;
    constexpr int kHalves = kLiveTile / kSm90Half;
    const int* list = p.live.lists + static_cast<int64_t>(gpu::block_index_x()) * p.live.num_tiles + first;
    return list[half / kHalves] * kLiveTile + half % kHalves * kSm90Half;  // fault: sm90_live_halves
  }

  // The parity of the phase of a stage's barriers in which it holds this half.
  ATTFC_DEVICE static unsigned parity_of(int half) { return static_cast<unsigned>(half / kStages) & 1; }

  // Producer, one thread.
  ATTFC_DEVICE void copy_operands() {
    if (tiles == 0) return;
    gpu::barrier_arrive_expect_tx(&shared.embeddings_full, kSteps * kEmbeddingBytes);
    for (int step = 0; step < kSteps; ++step) {
      gpu::copy_tile(shared.embeddings[step], maps.embeddings, &shared.embeddings_full, step * gpu::kTileColumns,
                     first_row);
    }
    for (int half = 0; half < 2 * tiles; ++half) {
      const int stage = half % kStages, center = center_of(half);
      gpu::barrier_wait(&shared.empty[stage], parity_of(half) ^ 1);               // fault: sm90_empty_wait
      gpu::barrier_arrive_expect_tx(&shared.full[stage], kSteps * kCenterBytes);  // fault: sm90_half_bytes
      for (int step = 0; step < kSteps; ++step) {
        gpu::copy_tile(shared.centers[stage][step], maps.centers, &shared.full[stage], step * gpu::kTileColumns,
                       center);
      }
    }
  }

  // Producer, one warp: a lane for each centre of a half.
  ATTFC_DEVICE void write_numbers() {
    const float* scales = static_cast<const float*>(p.center_scale);
    for (int half = 0; half < 2 * tiles; ++half) {
      const int stage = half % kStages, center = center_of(half) + lane;
      const bool inside = center < p.num_centers;  // fault: sm90_center_end
      const int64_t label = inside ? p.center_labels[center] : -1;
      gpu::barrier_wait(&shared.empty[stage], parity_of(half) ^ 1);  // fault: sm90_numbers_wait
      gpu::store_shared(shared.numbers[stage].labels + lane, label);
      gpu::store_shared(shared.numbers[stage].scales + lane, label >= 0 && scales != nullptr ? scales[center] : 1.0f);
      const bool empty = inside && label < 0;
      if (gpu::warp_any(empty)) {
        gpu::barrier_wait(&shared.full[stage], parity_of(half));  // fault: sm90_zeros_wait
        if (empty) zero_center(stage);                            // fault: sm90_zeros
        gpu::fence_proxy_async();                                 // fault: sm90_zeros_fence
      }
      gpu::barrier_arrive(&shared.numbers_full[stage]);
    }
  }

  // This lane's centre, all of it: rows of 128 bytes whose order within does not matter.
  ATTFC_DEVICE void zero_center(int stage) {
    for (int step = 0; step < kSteps; ++step) {
      for (int chunk = 0; chunk < gpu::kTileColumns / 8; ++chunk) {
        uint16_t* at = shared.centers[stage][step] + lane * gpu::kTileColumns + (chunk ^ lane % 8) * 8;
        gpu::store_shared(reinterpret_cast<gpu::Float4*>(at), gpu::Float4{0, 0, 0, 0});
      }
    }
  }

  ATTFC_DEVICE void consume() {
    const int group = gpu::uniform(thread / gpu::kWarpGroupSize) - 1;
    const int own_row = thread % gpu::kWarpGroupSize / gpu::kWarpSize * 16 + lane / 4;
    Row rows[2];
    load_row(rows[0], own_row);
    load_row(rows[1], own_row + 8);
    float out[Config::kAccumulators][64] = {};
    float dots[16] = {};
    unsigned moves = 0;
    if (tiles > 0) {
      gpu::barrier_wait(&shared.embeddings_full, 0);  // fault: sm90_embeddings_wait
      logits(0, group, dots);
      gpu::wgmma_wait<0>(dots);
    }
    // A group of products begins and ends in one branch: registers that it fills must not be anybody else's meanwhile.
    for (int tile = 0; tile < tiles; ++tile) {
      const bool needed = write_weights(tile, rows, dots, out, moves, group, own_row), last = tile + 1 == tiles;
      if (!needed) {
        rows[0].omitted += rows[0].pending_mass;  // fault: sm90_omitted
        rows[1].omitted += rows[1].pending_mass;
        if (last) break;
        release(tile);
        logits(tile + 1, group, dots);
        gpu::wgmma_wait<0>(dots);
      } else if (last) {
        add_gradient(tile, group, out);
        wait<0>(out);
      } else {
        add_gradient(tile, group, out);
        logits(tile + 1, group, dots);
        wait<1>(out);  // fault: sm90_wait_of_release
        release(tile);
        gpu::wgmma_wait<0>(dots);  // fault: sm90_wait_of_logits
      }
    }
    write_sums(rows, group, own_row);
    write_gradient(out, group, own_row);
  }

  template <int kPending>
  ATTFC_DEVICE static void wait(float (&out)[Config::kAccumulators][64]) {
    ATTFC_UNROLL
    for (int part = 0; part < Config::kAccumulators; ++part) gpu::wgmma_wait<kPending>(out[part]);
  }

  // A tile's weights, of both warpgroups, in shared memory; true: O needs them.
  ATTFC_DEVICE bool write_weights(int tile, Row (&rows)[2], const float (&dots)[16],
                                  float (&out)[Config::kAccumulators][64], unsigned& moves, int group, int own_row) {
    const Numbers& numbers = shared.numbers[(2 * tile + group) % kStages];
    uint16_t* weights = shared.weights[tile % 2];  // fault: sm90_weight_buffers
    const bool stays[2] = {weigh(rows[0], 0, dots, numbers, weights, group, own_row, true),
                           weigh(rows[1], 1, dots, numbers, weights, group, own_row, true)};
    bool needed = false;
    ATTFC_UNROLL
    for (const Row& row : rows) {
      needed |= !may_omit(row.omitted, row.pending_mass, row.sum, row.target_mass, p.grad_tolerance);
    }
    uint32_t flags = (gpu::warp_any(needed) ? kNeeded : 0u) | (stays[0] && stays[1] ? 0u : kMoves);
    if (lane == 0) gpu::store_shared(shared.flags[tile % 2] + (thread / gpu::kWarpSize - 4), flags);
    meet(shared.weights_full, static_cast<unsigned>(tile));
    flags = 0;
    ATTFC_UNROLL
    for (int other = 0; other < kWarps; ++other) flags |= gpu::load_shared(shared.flags[tile % 2] + other);
    if ((flags & kMoves) == 0) return (flags & kNeeded) != 0;
    move(rows, out, group, own_row, moves++);
    weigh(rows[0], 0, dots, numbers, weights, group, own_row, !stays[0]);  // fault: sm90_counted_once
    weigh(rows[1], 1, dots, numbers, weights, group, own_row, !stays[1]);
    meet(shared.moved, moves++);
    return true;
  }

  // All consumers, after what they have written of the weights; uses counts the barrier's phases.
  ATTFC_DEVICE void meet(gpu::Barrier& barrier, unsigned uses) {
    gpu::fence_proxy_async();  // fault: sm90_weights_fence
    gpu::barrier_arrive(&barrier);
    gpu::barrier_wait(&barrier, uses & 1);  // fault: sm90_meet
  }

  // First product: 64 rows x this warpgroup's 32 centres.
  ATTFC_DEVICE void logits(int tile, int group, float (&dots)[16]) {
    const int half = 2 * tile + group, stage = half % kStages;
    gpu::barrier_wait(&shared.full[stage], parity_of(half));          // fault: sm90_full_wait
    gpu::barrier_wait(&shared.numbers_full[stage], parity_of(half));  // fault: sm90_numbers_full
    const gpu::Operand rows = gpu::swizzled_operand(shared.embeddings[0]);
    const gpu::Operand centers = gpu::swizzled_operand(shared.centers[stage][0]);
    gpu::wgmma_fence();  // fault: sm90_logits_fence
    ATTFC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      ATTFC_UNROLL
      for (int k = 0; k < gpu::kTileColumns / 16; ++k) {
        const gpu::Operand a = rows.at(step * kEmbeddingBytes + 32 * k);
        const gpu::Operand b = centers.at(step * kCenterBytes + 32 * k);  // fault: sm90_logit_operands
        if (step == 0 && k == 0) {
          gpu::wgmma_64x32x16<Element, false>(dots, a, b);
        } else {
          gpu::wgmma_64x32x16<Element, true>(dots, a, b);
        }
      }
    }
    gpu::wgmma_commit();
  }

  // Second product: 64 rows x this warpgroup's columns, over both halves of the tile.
  ATTFC_DEVICE void add_gradient(int tile, int group, float (&out)[Config::kAccumulators][64]) {
    const gpu::Operand weights = gpu::swizzled_operand(shared.weights[tile % 2]);
    gpu::wgmma_fence();  // fault: sm90_gradient_fence
    ATTFC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int number = 2 * tile + half, stage = number % kStages;
      gpu::barrier_wait(&shared.full[stage], parity_of(number));  // the other's half has not been waited for here
      const gpu::Operand centers =
          gpu::swizzled_rows(shared.centers[stage][group * Config::kColumns / gpu::kTileColumns], kCenterBytes);
      ATTFC_UNROLL
      for (int k = 0; k < kSm90Half / 16; ++k) {
        const gpu::Operand a = weights.at(half * kSm90Half * 2 + 32 * k);
        ATTFC_UNROLL
        for (int part = 0; part < Config::kAccumulators; ++part) {
          // 16 rows of 128 bytes on, and two tiles.
          const gpu::Operand b = centers.at(2048 * k + 2 * kCenterBytes * part);  // fault: sm90_gradient_operands
          gpu::wgmma_64x128x16_rows<Element, true>(out[part], a, b);
        }
      }
    }
    gpu::wgmma_commit();
  }

  ATTFC_DEVICE void release(int tile) {
    if (lane != 0) return;
    gpu::barrier_arrive(&shared.empty[2 * tile % kStages]);  // fault: sm90_released_half
    gpu::barrier_arrive(&shared.empty[(2 * tile + 1) % kStages]);
  }

  // Of the row `line` of the block, for its eight threads.
  ATTFC_DEVICE void write_row(int line) const {
    const int row = first_row + line;
    int64_t label = row < p.num_rows ? p.labels[row] : -1;
    const RowModulation<float> modulation = label >= 0 ? p.modulation<float>(row) : no_modulation<float>();
    if (p.live.lists != nullptr && label >= 0 && p.live.lse[row] == -INFINITY) label = -1;  // nothing of it counts
    gpu::store_shared(reinterpret_cast<gpu::Float4*>(shared.modulations + line),
                      gpu::Float4{modulation.threshold, modulation.quad, modulation.lin, modulation.constant});
    gpu::store_shared(shared.labels + line, label);
    gpu::store_shared(shared.weight_scales + line, Range::row_scale(modulation.quad, modulation.lin));
  }

  ATTFC_DEVICE RowModulation<float> modulation_of(int line) const {
    const gpu::Float4 four = gpu::load_shared(reinterpret_cast<const gpu::Float4*>(shared.modulations + line));
    return {four.x, four.y, four.z, four.w};
  }

  ATTFC_DEVICE float weight_scale_of(int line) const {
    return Range::kStartsAtTarget ? 1.0f : gpu::load_shared(shared.weight_scales + line);
  }

  ATTFC_DEVICE void load_row(Row& out, int line) const {
    out.reference = Range::kStartsAtTarget || p.live.lists != nullptr ? target(line) : -INFINITY;
    out.sum = out.moment_quad = out.moment_lin = out.moment_const = out.omitted = out.pending_mass = 0;
    out.max_cosine = out.largest = -INFINITY;
    out.hard_count = 0;
    update_target_mass(out, line);
  }

  // The row's target logit, or -inf; its lse where that is known. An ignored row's numbers may be anything.
  ATTFC_DEVICE float target(int line) const {
    if (gpu::load_shared(shared.labels + line) < 0) return -INFINITY;
    return p.live.lists != nullptr ? p.live.lse[first_row + line] : p.target_logit<float>(first_row + line);
  }

  // A thread's share of exp(target - R): what all threads of a row and all splits omit stays under the tolerance.
  ATTFC_DEVICE void update_target_mass(Row& row, int line) const {
    const float logit = target(line);
    const float shares = static_cast<float>(p.splits * kThreadsOfRow);  // fault: sm90_target_share
    row.target_mass = logit == -INFINITY ? 0 : expf(logit - row.reference) / shares;
  }

  // The largest logit may lie as far above R as the 16-bit format bears (WeightRange).
  ATTFC_DEVICE static bool is_above(float largest, float reference) {
    return must_move(largest + (kSafeDistance - Range::kDistance), reference);
  }

  // From cosines to p N' s of this thread's columns of a row, to shared memory, and the row's sums (`counts`). False,
  // and nothing done but `largest`, where a reference of the warp's rows must move first.
  ATTFC_DEVICE bool weigh(Row& row, int upper, const float (&dots)[16], const Numbers& numbers, uint16_t* weights,
                          int group, int own_row, bool counts) const {
    const bool scaled = p.center_scale != nullptr;
    const int line = own_row + 8 * upper;
    const RowModulation<float> modulation = modulation_of(line);
    const int64_t row_label = gpu::load_shared(shared.labels + line);
    float cosine[kOwn], logit[kOwn];  // -inf where it is no valid negative
    float largest = -INFINITY, widest = 1;
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; k += 2) {
      const int column = 4 * k + lane % 4 * 2;
      const gpu::Long2 label = gpu::load_shared(reinterpret_cast<const gpu::Long2*>(numbers.labels + column));
      gpu::Float2 scale = {1, 1};
      if (scaled) scale = gpu::load_shared(reinterpret_cast<const gpu::Float2*>(numbers.scales + column));
      ATTFC_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int64_t own = e == 0 ? label.x : label.y;
        const float by = e == 0 ? scale.x : scale.y;
        const bool is_valid = own >= 0 && own != row_label && row_label >= 0;  // fault: sm90_valid_negative
        float modulated, slope;
        cosine[k + e] = dots[2 * k + 2 * upper + e] * by;  // fault: sm90_accumulator_rows
        modulate(modulation, cosine[k + e], modulated, slope);
        logit[k + e] = is_valid ? p.scale * modulated : -INFINITY;
        largest = fmaxf(largest, logit[k + e]);
        // The largest weight, not only the largest p, must stay in reach of R.
        if (Range::kCarriesScale && scaled && is_valid) widest = fmaxf(widest, by);
      }
    }
    if (Range::kCarriesScale && scaled) largest += logf(widest);
    row.largest = largest;
    row.pending_mass = 0;
    if (gpu::warp_any(is_above(largest, row.reference))) return false;

    const float weight_scale = weight_scale_of(line);
    const float reference = row.reference == -INFINITY ? 0 : row.reference;  // -inf: there is nothing yet
    float mass = 0;
    ATTFC_UNROLL
    for (int k = 0; k < kOwn; k += 2) {
      const int column = 4 * k + lane % 4 * 2;
      gpu::Float2 scale = {1, 1};
      if (scaled) scale = gpu::load_shared(reinterpret_cast<const gpu::Float2*>(numbers.scales + column));
      float weight[2];
      ATTFC_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int i = k + e;
        const float probability = gpu::exp2_approx((logit[i] - reference) * kLog2E);
        mass += probability;
        float modulated, slope;
        modulate(modulation, cosine[i], modulated, slope);
        slope *= e == 0 ? scale.x : scale.y;  // fault: sm90_scaled_weight
        weight[e] = slope * (probability * weight_scale);
        if (!counts || logit[i] == -INFINITY) continue;
        row.max_cosine = fmaxf(row.max_cosine, cosine[i]);
        if (cosine[i] > modulation.threshold) {
          row.moment_const += probability;
          row.moment_lin += probability * cosine[i];
          row.moment_quad += probability * cosine[i] * cosine[i];
          ++row.hard_count;
        }
      }
      // wgmma's 128-byte swizzle: the 16-byte chunk of a row is at chunk XOR row % 8.
      const int chunk = group * (kSm90Half / 8) + k / 2;
      uint16_t* at = weights + line * kSm90Tile + (chunk ^ line % 8) * 8 + lane % 4 * 2;  // fault: sm90_weight_swizzle
      gpu::store_shared(reinterpret_cast<uint32_t*>(at), gpu::pack<Element>(weight[0], weight[1]));
    }
    row.pending_mass = mass;
    if (counts) row.sum += mass;
    return true;
  }

  // The slow path: every row whose largest logit is out of reach takes it as its reference, the same in its eight
  // threads. Sums and O follow.
  ATTFC_DEVICE void move(Row (&rows)[2], float (&out)[Config::kAccumulators][64], int group, int own_row,
                         unsigned uses) {
    ATTFC_UNROLL
    for (int upper = 0; upper < 2; ++upper) {
      float& wish = rows[upper].largest;
      wish = fmaxf(wish, gpu::shuffle_xor(wish, 1));
      wish = fmaxf(wish, gpu::shuffle_xor(wish, 2));
      if (lane % 4 == 0) gpu::store_shared(shared.wishes[group] + own_row + 8 * upper, wish);
    }
    meet(shared.moved, uses);
    ATTFC_UNROLL
    for (int upper = 0; upper < 2; ++upper) {
      Row& row = rows[upper];
      const int line = own_row + 8 * upper;
      const float wish = fmaxf(row.largest, gpu::load_shared(shared.wishes[1 - group] + line));  // fault: sm90_wishes
      if (!is_above(wish, row.reference)) continue;
      const float factor = move_factor(row.reference, wish);
      row.reference = wish;
      row.sum *= factor;
      row.moment_quad *= factor;
      row.moment_lin *= factor;
      row.moment_const *= factor;
      row.omitted *= factor;
      update_target_mass(row, line);
      scale_gradient(out, upper, factor);  // fault: sm90_gradient_moves
    }
  }

  ATTFC_DEVICE static void scale_gradient(float (&out)[Config::kAccumulators][64], int upper, float factor) {
    ATTFC_UNROLL
    for (int part = 0; part < Config::kAccumulators; ++part) {
      ATTFC_UNROLL
      for (int i = 0; i < 64; i += 4) {
        out[part][i + 2 * upper] *= factor;
        out[part][i + 2 * upper + 1] *= factor;
      }
    }
  }

  // A row's sums over its four lanes; the second warpgroup's reach the first through shared memory. R is common, so
  // that merging moves nothing.
  ATTFC_DEVICE void write_sums(const Row (&rows)[2], int group, int own_row) {
    PartialLse<float> totals[2];
    float keep, add;
    ATTFC_UNROLL
    for (int upper = 0; upper < 2; ++upper) {
      const Row& row = rows[upper];
      PartialLse<float>& total = totals[upper];
      total = {row.reference,    row.sum,     row.moment_quad, row.moment_lin,
               row.moment_const, row.omitted, row.max_cosine,  row.hard_count};
      merge(total, of_other_lane(total, 1), keep, add);
      merge(total, of_other_lane(total, 2), keep, add);
      if (group == 1 && lane % 4 == 0) shared.halves[own_row + 8 * upper] = total;
    }
    if (group == 1) {
      gpu::barrier_arrive(&shared.halves_full);
      return;
    }
    gpu::barrier_wait(&shared.halves_full, 0);  // fault: sm90_halves_wait
    ATTFC_UNROLL
    for (int upper = 0; upper < 2; ++upper) {
      const int line = own_row + 8 * upper;
      if (lane % 4 != 0 || first_row + line >= p.num_rows) continue;
      merge(totals[upper], shared.halves[line], keep, add);
      write_partial(p.partial, gpu::block_index_y() * p.num_rows + first_row + line, totals[upper]);
    }
  }

  ATTFC_DEVICE void write_gradient(float (&out)[Config::kAccumulators][64], int group, int own_row) {
    ATTFC_UNROLL
    for (int upper = 0; upper < 2; ++upper) {
      if (!Range::kStartsAtTarget)
        scale_gradient(out, upper, 1 / weight_scale_of(own_row + 8 * upper));  // fault: sm90_scale_undone
      const int row = first_row + own_row + 8 * upper;
      if (row >= p.num_rows) continue;  // fault: sm90_output_end
      float* to = p.partial.gradient + (gpu::block_index_y() * p.num_rows + row) * Config::kDim +
                  group * Config::kColumns + lane % 4 * 2;
      ATTFC_UNROLL
      for (int part = 0; part < Config::kAccumulators; ++part) {
        ATTFC_UNROLL
        for (int n = 0; n < 16; ++n) {
          const int i = 4 * n + 2 * upper;
          *reinterpret_cast<gpu::Float2*>(to + 128 * part + 8 * n) = {out[part][i], out[part][i + 1]};
        }
      }
    }
  }
};

template <class Config, class Element>
ATTFC_KERNEL(Config::kThreads, 1)
sweep_sm90_kernel(ATTFC_GRID_CONSTANT const SweepSm90Parameters parameters) {
  if constexpr (gpu::kSm90a) SweepSm90Block<Config, Element>(parameters).run();
}

}  // namespace attfc::cuda
