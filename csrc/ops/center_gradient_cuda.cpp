// attfc::center_gradient_cuda: checks, output, workspace, device and stream around csrc/cuda/center_gradient.h.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>

#include <cmath>
#include <limits>

#include "../cuda/center_gradient.h"
#include "cuda_device.h"
#include "cuda_ops.h"

namespace attfc {
namespace {

constexpr const char* kOp = "center_gradient";

// The power of two that brings the largest |G| to 2^9 .. 2^10, far from both ends of float16; 1 where nothing is known
// of it. One number on the device, from a few operators on B numbers: nothing waits for it.
//     |G| <= scale |grad_lse| max(1, 2 |quad| + |lin|)   or   |target_grad|,   since q <= 1 and |c| <= 1
at::Tensor weight_scale_of(const at::Tensor& grad_lse, const at::Tensor& lse,
                           const std::optional<at::Tensor>& target_grad, const at::Tensor& labels,
                           const at::Tensor& row_values, double scale) {
  at::Tensor bound = at::abs(grad_lse) * scale;
  if (row_values.size(0) == kNumRowValues) {
    bound = bound * at::clamp(2 * at::abs(row_values.select(0, kQuad)) + at::abs(row_values.select(0, kLin)), 1);
  }
  // What does not count may hold anything.
  bound = at::where(lse > -std::numeric_limits<double>::infinity(), bound, 0);
  if (target_grad) bound = at::maximum(bound, at::abs(*target_grad));
  const at::Tensor largest = at::amax(at::where(labels >= 0, bound, 0));
  const at::Tensor exponent = at::clamp(std::get<1>(at::frexp(largest)), -100, 100).to(at::kFloat);
  return at::where(at::isfinite(largest).logical_and(largest > 0), at::exp2(10 - exponent), 1);
}

}  // namespace

at::Tensor center_gradient_cuda(const at::Tensor& grad_lse, const at::Tensor& lse,
                                const std::optional<at::Tensor>& target_grad, const at::Tensor& embeddings,
                                const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& center_labels,
                                const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                                double scale, double grad_tolerance) {
  Operands operands = cuda_operands(kOp, embeddings, centers, labels, center_labels, center_scale, row_values);
  const c10::cuda::CUDAGuard guard(embeddings.device());
  const int64_t rows = embeddings.size(0), dim = embeddings.size(1), slots = centers.size(0);
  cuda::CenterGradientArguments arguments{};
  static_cast<SweepInputs&>(arguments) = operands.inputs;
  arguments.scale = static_cast<float>(scale);
  arguments.grad_tolerance = static_cast<float>(grad_tolerance);
  arguments.grad_lse = static_cast<const float*>(operands.values("grad_lse", grad_lse, rows));
  arguments.lse = static_cast<const float*>(operands.values("lse", lse, rows));
  arguments.target_grad = static_cast<const float*>(operands.values("target_grad", target_grad, rows));
  at::Tensor center_grad = at::empty({slots, dim}, centers.options(), at::MemoryFormat::Contiguous), weight_scale;
  if (arguments.dtype == Dtype::kFloat16 && rows > 0) {
    weight_scale = weight_scale_of(grad_lse, lse, target_grad, labels, row_values, scale);
    arguments.weight_scale = weight_scale.const_data_ptr<float>();
  }
  arguments.center_grad = center_grad.mutable_data_ptr();

  const cuda::DeviceLimits& limits = device_limits(embeddings.device().index());
  require_runnable(kOp, cuda::why_not(limits, arguments));
  const cuda::CenterGradientPlan plan = cuda::plan_center_gradient(limits, arguments);
  const at::Tensor workspace =
      at::empty({static_cast<int64_t>(plan.workspace_bytes)}, center_grad.options().dtype(at::kByte));
  require_launched(kOp, cuda::launch_center_gradient(plan, arguments, workspace.mutable_data_ptr(), current_stream()));
  return center_grad;
}

}  // namespace attfc
