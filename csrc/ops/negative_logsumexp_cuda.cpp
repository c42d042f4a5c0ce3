// attfc::negative_logsumexp_cuda: checks, outputs, workspace, device and stream around csrc/cuda/sweep.h.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda_device.h"
#include "cuda_ops.h"

namespace attfc {
namespace {

constexpr const char* kOp = "negative_logsumexp";

}  // namespace

NegativeLogSumExp negative_logsumexp_cuda(const at::Tensor& embeddings, const at::Tensor& centers,
                                          const at::Tensor& labels, const at::Tensor& center_labels,
                                          const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                                          double scale, double grad_tolerance, bool need_grad, bool need_moments) {
  const Operands operands = cuda_operands(kOp, embeddings, centers, labels, center_labels, center_scale, row_values);
  const c10::cuda::CUDAGuard guard(embeddings.device());
  const int64_t rows = embeddings.size(0), dim = embeddings.size(1);

  const auto options = embeddings.options().dtype(at::kFloat);
  at::Tensor lse = at::empty({rows}, options), max_cosine = at::empty({rows}, options),
             omitted_mass = at::empty({rows}, options), unit_grad = at::empty({need_grad ? rows : 0, dim}, options),
             hard_count = at::empty({rows}, options.dtype(at::kLong)),
             moments = at::empty({rows, 3}, options);  // the kernel writes them whether they are wanted or not

  cuda::SweepArguments arguments{};
  static_cast<SweepInputs&>(arguments) = operands.inputs;
  arguments.scale = static_cast<float>(scale);
  arguments.grad_tolerance = static_cast<float>(grad_tolerance);
  arguments.need_grad = need_grad;
  arguments.lse = lse.mutable_data_ptr<float>();
  arguments.hard_count = hard_count.mutable_data_ptr<int64_t>();
  arguments.max_cosine = max_cosine.mutable_data_ptr<float>();
  arguments.omitted_mass = omitted_mass.mutable_data_ptr<float>();
  arguments.unit_grad = unit_grad.mutable_data_ptr<float>();
  arguments.moments = moments.mutable_data_ptr<float>();

  const cuda::DeviceLimits& limits = device_limits(embeddings.device().index());
  require_runnable(kOp, cuda::why_not(limits, arguments));
  const cuda::SweepPlan plan = cuda::plan_sweep(limits, arguments);
  const at::Tensor workspace = at::empty({static_cast<int64_t>(plan.workspace_bytes)}, options.dtype(at::kByte));
  require_launched(kOp, cuda::launch_sweep(plan, arguments, workspace.mutable_data_ptr(), current_stream()));
  return {lse, hard_count, max_cosine, omitted_mass, unit_grad, need_moments ? moments : at::empty({0, 3}, options)};
}

}  // namespace attfc
