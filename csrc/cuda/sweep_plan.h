// What the launchers of one pass and of two share: splits, the workspace, and the parameters of their kernels.
#pragma once

#include "launcher.h"
#include "merge.h"

namespace attfc::cuda {

constexpr int kMaxSplits = 1024;

// The time of a sweep is (rounds of resident blocks) x (tiles of a split, and about kOverhead tiles' time for filling
// the pipeline, writing and merging O). Each split costs a workspace of rows x D floats, so of those within 3 % of the
// least time the fewest splits are taken. The same rule as attfc_cuda/ops/triton/launch.py's.
inline int choose_splits(int64_t row_blocks, int64_t tiles, int slots) {
  constexpr int64_t kOverhead = 6;
  const int most = static_cast<int>(tiles < 1 ? 1 : tiles < kMaxSplits ? tiles : kMaxSplits);
  const auto time = [&](int splits) {
    return divide_up(row_blocks * splits, slots) * (divide_up(tiles, splits) + kOverhead);
  };
  int64_t least = time(1);
  for (int splits = 2; splits <= most; ++splits) least = time(splits) < least ? time(splits) : least;
  int splits = 1;
  while (100 * time(splits) > 103 * least) ++splits;
  return splits;
}

// Where everything lies in the workspace, in float32 from its start; each array starts at a multiple of 16 bytes.
struct SweepWorkspace {
  size_t column, gradient, total;
  // Of two passes: the masses, lists and counts of live_tiles.h.
  size_t mass, lists, counts;
  int64_t mass_rows, live_tiles;

  SweepWorkspace(const SweepPlan& plan, const SweepArguments& arguments) {
    const auto rows = static_cast<size_t>(arguments.num_rows);
    const int splits = plan.two_passes && plan.lse_splits > plan.splits ? plan.lse_splits : plan.splits;
    column = aligned(static_cast<size_t>(splits) * rows);
    gradient = arguments.need_grad ? static_cast<size_t>(plan.splits) * rows * static_cast<size_t>(arguments.dim) : 0;
    total = gradient + 9 * column;  // hard_count takes two columns
    mass = lists = counts = total;
    mass_rows = divide_up(arguments.num_rows, kLiveTile) * kLiveTile;
    live_tiles = divide_up(arguments.num_centers, kLiveTile);
    if (!plan.two_passes) return;
    lists = mass + aligned(static_cast<size_t>(mass_rows * live_tiles + 1) / 2);
    if (!arguments.need_grad) {
      total = lists;
      return;
    }
    counts = lists + aligned(static_cast<size_t>(plan.row_blocks * live_tiles));
    total = counts + aligned(static_cast<size_t>(plan.row_blocks));
  }

  PartialSums partial(float* start) const {
    float* columns = start + gradient;
    return {columns + 2 * column,
            columns + 3 * column,
            columns + 4 * column,
            columns + 5 * column,
            columns + 6 * column,
            columns + 7 * column,
            columns + 8 * column,
            reinterpret_cast<int64_t*>(columns),
            start};
  }

 private:
  static size_t aligned(size_t count) { return (count + 3) / 4 * 4; }
};

inline SweepParameters sweep_parameters(const SweepArguments& arguments) {
  SweepParameters sweep{};
  static_cast<SweepInputs&>(sweep) = arguments;
  sweep.scale = arguments.scale;
  sweep.grad_tolerance = arguments.grad_tolerance;
  return sweep;
}

// Of a sweep's splits; without the gradient.
inline MergeParameters merge_parameters(const SweepArguments& arguments, const SweepParameters& sweep) {
  MergeParameters merge{};
  merge.partial = sweep.partial;
  merge.num_rows = arguments.num_rows;
  merge.dim = static_cast<int>(arguments.dim);
  merge.splits = sweep.splits;
  merge.target_logit = arguments.has_target_logit() ? static_cast<const float*>(arguments.row_values) : nullptr;
  merge.scale = arguments.scale;
  merge.lse = arguments.lse;
  merge.hard_count = arguments.hard_count;
  merge.max_cosine = arguments.max_cosine;
  merge.omitted_mass = arguments.omitted_mass;
  merge.moments = arguments.moments;
  return merge;
}

}  // namespace attfc::cuda
