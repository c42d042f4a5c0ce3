// The centre gradient's launcher, and the small kernel before it that resolves each row's numbers.
//
// center_gradient_rows_kernel: one thread per row of whole tiles, no shared memory, float32; bound by latency.
#include "center_gradient.h"

#include "center_gradient_instance.h"
#include "launcher.h"

namespace attfc::cuda {

template <>
const char* launch_center_gradient_config<CenterGradientD128>(Dtype, const CenterGradientParameters&, int64_t, void*);
template <>
const char* launch_center_gradient_config<CenterGradientD256>(Dtype, const CenterGradientParameters&, int64_t, void*);
template <>
const char* launch_center_gradient_config<CenterGradientD256Compact>(Dtype, const CenterGradientParameters&, int64_t,
                                                                     void*);
template <>
const char* launch_center_gradient_config<CenterGradientD512>(Dtype, const CenterGradientParameters&, int64_t, void*);
template <>
const char* launch_center_gradient_config<CenterGradientD512Wide>(Dtype, const CenterGradientParameters&, int64_t,
                                                                  void*);
template <>
const char* launch_center_gradient_config<CenterGradientD512Compact>(Dtype, const CenterGradientParameters&, int64_t,
                                                                     void*);

namespace {

constexpr int kRowThreads = 128;

// What plan_center_gradient() needs to know of an instantiation.
struct Shape {
  CenterGradientKernel kernel;
  int dim, centers, rows;
  size_t shared_bytes;
};

template <class Config>
constexpr Shape shape(CenterGradientKernel kernel) {
  return {kernel, Config::kDim, Config::kCenters, Config::kRows, CenterGradientShared<Config, gpu::BFloat16>::kBytes};
}

// Best first for each D.
constexpr Shape kShapes[] = {
    shape<CenterGradientD128>(CenterGradientKernel::kD128),
    shape<CenterGradientD256>(CenterGradientKernel::kD256),
    shape<CenterGradientD256Compact>(CenterGradientKernel::kD256Compact),
    shape<CenterGradientD512Wide>(CenterGradientKernel::kD512Wide),
    shape<CenterGradientD512>(CenterGradientKernel::kD512),
    shape<CenterGradientD512Compact>(CenterGradientKernel::kD512Compact),
};

struct RowsParameters : SweepInputs {
  int64_t padded_rows;
  const float *grad_lse, *lse, *target_grad, *weight_scale;
  float scale;
  float tolerance;  // of one block of centres
  RowNumbers* out;  // [padded_rows]
};

ATTFC_DEVICE float number_or(const float* numbers, int64_t row, float otherwise) {
  return numbers != nullptr ? numbers[row] : otherwise;
}

ATTFC_KERNEL(kRowThreads, 1) center_gradient_rows_kernel(const RowsParameters p) {
  const int64_t row = static_cast<int64_t>(gpu::block_index_x()) * kRowThreads + gpu::thread_index();
  if (row >= p.padded_rows) return;
  // A row that does not count: its lse makes q zero whatever the logits are.
  RowNumbers out = {{-1, 0, 0}, {no_modulation<float>()}, {INFINITY, INFINITY}};
  if (row < p.num_rows && p.labels[row] >= 0) {  // fault: counted_row
    const float by = number_or(p.weight_scale, 0, 1);
    const float lse = p.lse[row];
    const bool has_negatives = lse != -INFINITY;  // fault: row_with_negatives
    out.weights.label = p.labels[row];
    out.weights.target_weight = number_or(p.target_grad, row, 0) * by;
    if (has_negatives) {
      out.weights.weight = p.grad_lse[row] * p.scale * by;
      out.bend.modulation = p.modulation<float>(row);
      const float target_mass = expf(p.target_logit<float>(row) - lse);
      out.softmax.lse = lse;
      if (out.weights.weight != 0) out.softmax.omissible = p.tolerance > 0 ? p.tolerance * (1 + target_mass) : 0.0f;
    }
  }
  p.out[row] = out;
}

}  // namespace

const char* why_not(const DeviceLimits& device, const CenterGradientArguments& arguments) {
  const char* reason = why_not_operands(kShapes, device, arguments);
  if (reason != nullptr) return reason;
  if (!aligned(arguments.center_grad, 16)) return "center_grad must be aligned to 16 bytes";
  if (arguments.num_centers > kMaxGridX * 32) return "it takes fewer than 2^36 centers";
  return nullptr;
}

CenterGradientPlan plan_center_gradient(const DeviceLimits& device, const CenterGradientArguments& arguments) {
  const Shape& shape = *find_shape(kShapes, device, arguments.dim);
  CenterGradientPlan plan;
  plan.kernel = shape.kernel;
  plan.centers_per_block = shape.centers;
  plan.rows_per_tile = shape.rows;
  plan.blocks = divide_up(arguments.num_centers, shape.centers);
  plan.tiles = static_cast<int>(divide_up(arguments.num_rows, shape.rows));
  plan.workspace_bytes = sizeof(RowNumbers) * static_cast<size_t>(plan.tiles) * static_cast<size_t>(shape.rows);
  return plan;
}

const char* launch_center_gradient(const CenterGradientPlan& plan, const CenterGradientArguments& arguments,
                                   void* workspace, void* stream) {
  if (arguments.num_centers == 0) return nullptr;
  RowNumbers* row_numbers = static_cast<RowNumbers*>(workspace);
  if (plan.tiles > 0) {
    RowsParameters rows;
    static_cast<SweepInputs&>(rows) = arguments;
    rows.padded_rows = static_cast<int64_t>(plan.tiles) * plan.rows_per_tile;
    rows.grad_lse = arguments.grad_lse;
    rows.lse = arguments.lse;
    rows.target_grad = arguments.target_grad;
    rows.weight_scale = arguments.weight_scale;
    rows.scale = arguments.scale;
    // Of all blocks together not more than grad_tolerance is left out of a row.
    rows.tolerance = arguments.grad_tolerance / static_cast<float>(plan.blocks);  // fault: tolerance_of_block
    rows.out = row_numbers;
    const gpu::Grid grid{static_cast<unsigned>(divide_up(rows.padded_rows, kRowThreads)), 1};
    const char* error = gpu::launch(center_gradient_rows_kernel, grid, kRowThreads, 0, stream, rows);
    if (error != nullptr) return error;
  }

  CenterGradientParameters parameters;
  parameters.num_centers = arguments.num_centers;
  parameters.embeddings = arguments.embeddings;
  parameters.embedding_stride = arguments.embedding_stride;
  parameters.centers = arguments.centers;
  parameters.center_stride = arguments.center_stride;
  parameters.center_labels = arguments.center_labels;
  parameters.center_scale = static_cast<const float*>(arguments.center_scale);
  parameters.row_numbers = row_numbers;
  parameters.tiles = plan.tiles;
  parameters.scale = arguments.scale;
  parameters.weight_scale = arguments.weight_scale;
  parameters.center_grad = arguments.center_grad;
  const auto launch = [&](auto run) { return run(arguments.dtype, parameters, plan.blocks, stream); };
  switch (plan.kernel) {
    case CenterGradientKernel::kD128: return launch(launch_center_gradient_config<CenterGradientD128>);
    case CenterGradientKernel::kD256: return launch(launch_center_gradient_config<CenterGradientD256>);
    case CenterGradientKernel::kD256Compact: return launch(launch_center_gradient_config<CenterGradientD256Compact>);
    case CenterGradientKernel::kD512: return launch(launch_center_gradient_config<CenterGradientD512>);
    case CenterGradientKernel::kD512Wide: return launch(launch_center_gradient_config<CenterGradientD512Wide>);
    case CenterGradientKernel::kD512Compact: return launch(launch_center_gradient_config<CenterGradientD512Compact>);
  }
  return "unknown kernel";
}

}  // namespace attfc::cuda
