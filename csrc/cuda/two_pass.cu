// The launcher of two passes (two_pass.h).
#include "two_pass.h"

#include "live_tiles.h"
#include "lse_pass.h"
#include "lse_pass_layout.h"
#include "sweep_plan.h"
#include "sweep_sm90.h"

namespace attfc::cuda {

static_assert(kLiveTile == kLsePassTile && kLiveTile == kLsePassRows);

const char* why_one_pass(const DeviceLimits& device, const SweepArguments& arguments) {
  const char* reason = why_not_sm90(device, arguments);
  if (reason != nullptr) return reason;
  if (static_cast<size_t>(device.shared_bytes) < sizeof(LsePassShared<LsePassConfig<512, 5>>)) {
    return "a block has too little shared memory for two";
  }
  if (arguments.need_grad && !(arguments.grad_tolerance > 0)) {
    return "with a tolerance of 0 the second of two would leave out little";
  }
  return nullptr;
}

int choose_lse_splits(const DeviceLimits& device, const SweepArguments& arguments) {
  return choose_splits(divide_up(arguments.num_rows, kLsePassRows), divide_up(arguments.num_centers, kLsePassTile),
                       device.multiprocessors);
}

const char* launch_two_passes(const SweepPlan& plan, const SweepArguments& arguments, void* workspace, void* stream) {
  const SweepWorkspace places(plan, arguments);
  float* start = static_cast<float*>(workspace);
  LsePassParameters pass{};
  pass.sweep = sweep_parameters(arguments);
  pass.sweep.splits = plan.lse_splits;
  pass.sweep.tiles_per_split = divide_up(places.live_tiles, plan.lse_splits);
  pass.sweep.partial = places.partial(start);
  pass.mass = reinterpret_cast<uint16_t*>(start + places.mass);
  pass.mass_rows = places.mass_rows;
  const int dim = static_cast<int>(arguments.dim);
  const char* error = launch_lse_pass(arguments.dtype, dim, pass, divide_up(arguments.num_rows, kLsePassRows), stream);
  if (error == nullptr) error = launch_merge(merge_parameters(arguments, pass.sweep), stream);
  if (error != nullptr || !arguments.need_grad) return error;

  LiveTilesParameters tiles{};
  static_cast<SweepInputs&>(tiles) = arguments;
  tiles.mass = pass.mass;
  tiles.mass_rows = pass.mass_rows;
  tiles.tiles = static_cast<int>(places.live_tiles);
  tiles.lse = arguments.lse;
  tiles.grad_tolerance = arguments.grad_tolerance;
  tiles.lists = reinterpret_cast<int*>(start + places.lists);
  tiles.counts = reinterpret_cast<int*>(start + places.counts);
  tiles.omitted_mass = arguments.omitted_mass;
  error = launch_live_tiles(tiles, stream);
  if (error != nullptr) return error;

  SweepParameters gradient = sweep_parameters(arguments);
  gradient.grad_tolerance = 0;  // the lists are what may be left out
  gradient.splits = plan.splits;
  gradient.partial = pass.sweep.partial;
  gradient.live = {tiles.lists, tiles.counts, tiles.tiles, arguments.lse};
  error = launch_sweep_kernel(plan, true, gradient, stream);
  if (error != nullptr) return error;
  MergeParameters merge = merge_parameters(arguments, gradient);
  merge.final_lse = arguments.lse;
  merge.unit_grad = arguments.unit_grad;
  return launch_merge(merge, stream);
}

}  // namespace attfc::cuda
