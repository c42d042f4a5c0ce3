// The sweep's launcher: which kernel, how many splits, where the partial results lie.
#include "sweep.h"

#include "launcher.h"
#include "merge.h"
#include "sweep_instance.h"
#include "sweep_plan.h"
#include "sweep_sm90.h"
#include "sweep_sm90_layout.h"
#include "two_pass.h"

namespace attfc::cuda {

template <>
const char* launch_sweep_config<SweepD128>(Dtype, bool, const SweepParameters&, int64_t, void*);
template <>
const char* launch_sweep_config<SweepD256>(Dtype, bool, const SweepParameters&, int64_t, void*);
template <>
const char* launch_sweep_config<SweepD256Compact>(Dtype, bool, const SweepParameters&, int64_t, void*);
template <>
const char* launch_sweep_config<SweepD512>(Dtype, bool, const SweepParameters&, int64_t, void*);
template <>
const char* launch_sweep_config<SweepD512Wide>(Dtype, bool, const SweepParameters&, int64_t, void*);
template <>
const char* launch_sweep_config<SweepD512Compact>(Dtype, bool, const SweepParameters&, int64_t, void*);

namespace {

// What plan_sweep() needs to know of an instantiation.
struct Shape {
  SweepKernel kernel;
  int dim, rows, tile;
  size_t shared_bytes;  // with the gradient
};

template <class Config>
constexpr Shape shape(SweepKernel kernel) {
  return {kernel, Config::kDim, Config::kRows, Config::kTile, SweepShared<Config, gpu::BFloat16, true>::kBytes};
}

// Best first for each D.
constexpr Shape kShapes[] = {
    shape<SweepD128>(SweepKernel::kD128),
    shape<SweepD256>(SweepKernel::kD256),
    shape<SweepD256Compact>(SweepKernel::kD256Compact),
    shape<SweepD512Wide>(SweepKernel::kD512Wide),
    shape<SweepD512>(SweepKernel::kD512),
    shape<SweepD512Compact>(SweepKernel::kD512Compact),
};

// The kernel by wgmma where it can run; else by mma.sync, which every D and device has.
Shape choose_shape(const DeviceLimits& device, const SweepArguments& arguments) {
  const size_t bytes = sweep_sm90_shared_bytes(arguments.dim);
  if (arguments.need_grad && bytes != 0 && bytes <= static_cast<size_t>(device.shared_bytes) &&
      why_not_sm90(device, arguments) == nullptr) {
    return {SweepKernel::kSm90, static_cast<int>(arguments.dim), kSm90Rows, kSm90Tile, bytes};
  }
  return *find_shape(kShapes, device, arguments.dim);
}

// Blocks of a shape that a multiprocessor holds: by shared memory (1 KiB of it goes to each block), and by registers
// not more than two.
int resident_blocks(const DeviceLimits& device, const Shape& shape) {
  return static_cast<size_t>(device.shared_bytes) + 1024 >= 2 * (shape.shared_bytes + 1024) ? 2 : 1;
}

}  // namespace

const char* why_not(const DeviceLimits& device, const SweepArguments& arguments) {
  const char* reason = why_not_operands(kShapes, device, arguments);
  if (reason != nullptr) return reason;
  if (arguments.need_grad && !aligned(arguments.unit_grad, 16)) return "unit_grad must be aligned to 16 bytes";
  return nullptr;
}

SweepPlan plan_sweep(const DeviceLimits& device, const SweepArguments& arguments) {
  const Shape shape = choose_shape(device, arguments);
  SweepPlan plan;
  plan.kernel = shape.kernel;
  plan.rows_per_block = shape.rows;
  plan.centers_per_tile = shape.tile;
  plan.row_blocks = divide_up(arguments.num_rows, shape.rows);
  const int64_t tiles = divide_up(arguments.num_centers, shape.tile);
  plan.splits = choose_splits(plan.row_blocks, tiles, device.multiprocessors * resident_blocks(device, shape));
  plan.tiles_per_split = divide_up(tiles, plan.splits);
  plan.two_passes = why_one_pass(device, arguments) == nullptr;
  plan.lse_splits = plan.two_passes ? choose_lse_splits(device, arguments) : 0;
  plan.workspace_bytes = SweepWorkspace(plan, arguments).total * sizeof(float);
  return plan;
}

const char* launch_sweep_kernel(const SweepPlan& plan, bool need_grad, const SweepParameters& sweep, void* stream) {
  const auto launch = [&](auto run) { return run(sweep.dtype, need_grad, sweep, plan.row_blocks, stream); };
  switch (plan.kernel) {
    case SweepKernel::kD128: return launch(launch_sweep_config<SweepD128>);
    case SweepKernel::kD256: return launch(launch_sweep_config<SweepD256>);
    case SweepKernel::kD256Compact: return launch(launch_sweep_config<SweepD256Compact>);
    case SweepKernel::kD512: return launch(launch_sweep_config<SweepD512>);
    case SweepKernel::kD512Wide: return launch(launch_sweep_config<SweepD512Wide>);
    case SweepKernel::kD512Compact: return launch(launch_sweep_config<SweepD512Compact>);
    case SweepKernel::kSm90: return launch_sweep_sm90(sweep, plan.row_blocks, stream);
  }
  return "unknown kernel";
}

const char* launch_sweep(const SweepPlan& plan, const SweepArguments& arguments, void* workspace, void* stream) {
  if (arguments.num_rows == 0) return nullptr;
  if (plan.two_passes) return launch_two_passes(plan, arguments, workspace, stream);
  SweepParameters sweep = sweep_parameters(arguments);
  sweep.splits = plan.splits;
  sweep.tiles_per_split = plan.tiles_per_split;
  sweep.partial = SweepWorkspace(plan, arguments).partial(static_cast<float*>(workspace));
  const char* error = launch_sweep_kernel(plan, arguments.need_grad, sweep, stream);
  if (error != nullptr) return error;
  MergeParameters merge = merge_parameters(arguments, sweep);
  if (arguments.need_grad) merge.unit_grad = arguments.unit_grad;
  return launch_merge(merge, stream);
}

}  // namespace attfc::cuda
