// The sweep's launcher: which kernel, how many splits, where the partial results lie.
#include "sweep.h"

#include "launcher.h"
#include "merge.h"
#include "sweep_instance.h"

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

constexpr int kMaxSplits = 1024;

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

// Blocks of a shape that a multiprocessor holds: by shared memory (1 KiB of it goes to each block), and by registers
// not more than two.
int resident_blocks(const DeviceLimits& device, const Shape& shape) {
  return static_cast<size_t>(device.shared_bytes) + 1024 >= 2 * (shape.shared_bytes + 1024) ? 2 : 1;
}

// The time of a sweep is (rounds of resident blocks) x (tiles of a split, and about kOverhead tiles' time for filling
// the pipeline, writing and merging O). Each split costs a workspace of rows x D floats, so of those within 3 % of the
// least time the fewest splits are taken. The same rule as attfc_cuda/ops/triton/launch.py's.
int choose_splits(int64_t row_blocks, int64_t tiles, int slots) {
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

// Where the partial sums lie in the workspace, in float32 from its start; each array starts at a multiple of 16 bytes.
struct Workspace {
  size_t count, column, gradient, total;

  Workspace(const SweepPlan& plan, const SweepArguments& arguments) {
    count = static_cast<size_t>(plan.splits) * static_cast<size_t>(arguments.num_rows);
    column = (count + 3) / 4 * 4;
    gradient = arguments.need_grad ? count * static_cast<size_t>(arguments.dim) : 0;
    total = gradient + 9 * column;  // hard_count takes two columns
  }

  PartialSums lay_out(float* start) const {
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
};

}  // namespace

const char* why_not(const DeviceLimits& device, const SweepArguments& arguments) {
  const char* reason = why_not_operands(kShapes, device, arguments);
  if (reason != nullptr) return reason;
  if (arguments.need_grad && !aligned(arguments.unit_grad, 16)) return "unit_grad must be aligned to 16 bytes";
  return nullptr;
}

SweepPlan plan_sweep(const DeviceLimits& device, const SweepArguments& arguments) {
  const Shape& shape = *find_shape(kShapes, device, arguments.dim);
  SweepPlan plan;
  plan.kernel = shape.kernel;
  plan.rows_per_block = shape.rows;
  plan.centers_per_tile = shape.tile;
  plan.row_blocks = divide_up(arguments.num_rows, shape.rows);
  const int64_t tiles = divide_up(arguments.num_centers, shape.tile);
  plan.splits = choose_splits(plan.row_blocks, tiles, device.multiprocessors * resident_blocks(device, shape));
  plan.tiles_per_split = divide_up(tiles, plan.splits);
  plan.workspace_bytes = Workspace(plan, arguments).total * sizeof(float);
  return plan;
}

const char* launch_sweep(const SweepPlan& plan, const SweepArguments& arguments, void* workspace, void* stream) {
  if (arguments.num_rows == 0) return nullptr;
  SweepParameters sweep;
  static_cast<SweepInputs&>(sweep) = arguments;
  sweep.scale = arguments.scale;
  sweep.grad_tolerance = arguments.grad_tolerance;
  sweep.splits = plan.splits;
  sweep.tiles_per_split = plan.tiles_per_split;
  sweep.partial = Workspace(plan, arguments).lay_out(static_cast<float*>(workspace));

  const auto launch = [&](auto run) {
    return run(arguments.dtype, arguments.need_grad, sweep, plan.row_blocks, stream);
  };
  const char* error = nullptr;
  switch (plan.kernel) {
    case SweepKernel::kD128: error = launch(launch_sweep_config<SweepD128>); break;
    case SweepKernel::kD256: error = launch(launch_sweep_config<SweepD256>); break;
    case SweepKernel::kD256Compact: error = launch(launch_sweep_config<SweepD256Compact>); break;
    case SweepKernel::kD512: error = launch(launch_sweep_config<SweepD512>); break;
    case SweepKernel::kD512Wide: error = launch(launch_sweep_config<SweepD512Wide>); break;
    case SweepKernel::kD512Compact: error = launch(launch_sweep_config<SweepD512Compact>); break;
  }
  if (error != nullptr) return error;

  MergeParameters merge;
  merge.partial = sweep.partial;
  merge.num_rows = arguments.num_rows;
  merge.dim = static_cast<int>(arguments.dim);
  merge.splits = plan.splits;
  merge.target_logit = arguments.has_target_logit() ? static_cast<const float*>(arguments.row_values) : nullptr;
  merge.scale = arguments.scale;
  merge.lse = arguments.lse;
  merge.hard_count = arguments.hard_count;
  merge.max_cosine = arguments.max_cosine;
  merge.omitted_mass = arguments.omitted_mass;
  merge.unit_grad = arguments.need_grad ? arguments.unit_grad : nullptr;
  merge.moments = arguments.moments;
  return launch_merge(merge, stream);
}

}  // namespace attfc::cuda
