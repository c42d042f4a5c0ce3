// The operators of a head step on a CUDA device: device guard, workspace and stream around csrc/cuda, behind the checks
// of head_step.h. Their schemas are registered beside the CPU's (head_step_cpu.cpp).
#include "head_step.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include "../cuda/adasin.h"
#include "../cuda/enqueue.h"
#include "../cuda/head_rows.h"
#include "../cuda/statistics.h"
#include "cuda_device.h"

namespace attfc {
namespace {

using c10::cuda::CUDAGuard;

at::Tensor workspace_of(size_t bytes, at::Device device) {
  return at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions(at::kByte).device(device));
}

// `launch`, one of csrc/cuda, as what head_step.h hands arguments to.
template <class Launch>
auto on_stream(const char* op, Launch launch) {
  return [op, launch](const auto& arguments) { require_launched(op, launch(arguments, current_stream())); };
}

head_step::HeadRows head_rows_cuda(const at::Tensor& embeddings, const at::Tensor& labels, const at::Tensor& gallery,
                                   const at::Tensor& extra_centers, const at::Tensor& extra_labels,
                                   const std::optional<at::Tensor>& code_of_class,
                                   const std::optional<at::Tensor>& stored_centers,
                                   const std::optional<at::Tensor>& slot_labels,
                                   const std::optional<at::Tensor>& slot_of_class, at::ScalarType container_dtype,
                                   int64_t num_classes, double temperature, double class_code, double center_memory) {
  const CUDAGuard guard(embeddings.device());
  const auto launch = [](const HeadRowsArguments& arguments) {
    require_runnable("head_rows", cuda::why_not(arguments));
    require_launched("head_rows", cuda::launch_head_rows(arguments, current_stream()));
  };
  return head_step::head_rows(embeddings, labels, gallery, extra_centers, extra_labels, code_of_class, stored_centers,
                              slot_labels, slot_of_class, container_dtype, num_classes, temperature, class_code,
                              center_memory, launch);
}

void enqueue(const char* op, const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& clock,
             const std::optional<at::Tensor>& stamps, const std::optional<at::Tensor>& slot_of_class,
             const at::Tensor& new_centers, const at::Tensor& new_labels) {
  const CUDAGuard guard(centers.device());
  const auto launch = [&](const EnqueueArguments& arguments) {
    require_runnable(op, cuda::why_not(arguments));
    const at::Tensor workspace = workspace_of(cuda::enqueue_workspace_bytes(arguments), centers.device());
    require_launched(op, cuda::launch_enqueue(arguments, workspace.mutable_data_ptr(), current_stream()));
  };
  head_step::enqueue(op, centers, labels, clock, stamps, slot_of_class, new_centers, new_labels, launch);
}

void enqueue_fifo_cuda(const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& clock,
                       const at::Tensor& new_centers, const at::Tensor& new_labels) {
  enqueue("enqueue_fifo", centers, labels, clock, std::nullopt, std::nullopt, new_centers, new_labels);
}

void enqueue_refresh_cuda(const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& clock,
                          const at::Tensor& stamps, const at::Tensor& slot_of_class, const at::Tensor& new_centers,
                          const at::Tensor& new_labels) {
  enqueue("enqueue_refresh", centers, labels, clock, stamps, slot_of_class, new_centers, new_labels);
}

at::Tensor adasin_row_values_cuda(const at::Tensor& labels, const at::Tensor& cosine, const at::Tensor& t,
                                  double margin_rad, double difficulty_weight, double momentum, double scale,
                                  bool half_angle, bool move_t) {
  const CUDAGuard guard(cosine.device());
  return head_step::adasin_row_values(labels, cosine, t, margin_rad, difficulty_weight, momentum, scale, half_angle,
                                      move_t, on_stream("adasin_row_values", cuda::launch_adasin_row_values));
}

// embeddings, unit_grad, inverse_norm and centers are for the backward pass alone (attfc_cuda/ops/head_step.py).
head_step::AdaSinLoss adasin_loss_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                       const at::Tensor& labels, const at::Tensor& cosine, const at::Tensor& row_values,
                                       const at::Tensor& lse, const at::Tensor& hard_count, double margin_rad,
                                       double scale, bool straight_through) {
  const CUDAGuard guard(cosine.device());
  return head_step::adasin_loss(labels, cosine, row_values, lse, hard_count, margin_rad, scale, straight_through,
                                on_stream("adasin_loss", cuda::launch_adasin_loss));
}

at::Tensor row_gradients_cuda(const at::Tensor& upstream, const at::Tensor& embeddings, const at::Tensor& unit_grad,
                              const at::Tensor& inverse_norm, const at::Tensor& centers, const at::Tensor& labels,
                              const at::Tensor& lse_weight, const at::Tensor& cosine_weight) {
  const CUDAGuard guard(embeddings.device());
  return head_step::row_gradients(upstream, embeddings, unit_grad, inverse_norm, centers, labels, lse_weight,
                                  cosine_weight, on_stream("row_gradients", cuda::launch_row_gradients));
}

std::tuple<at::Tensor, at::Tensor> step_statistics_cuda(const at::Tensor& loss, const at::Tensor& labels,
                                                        const at::Tensor& cosine, const at::Tensor& hard_count,
                                                        const at::Tensor& max_cosine, const at::Tensor& omitted_mass,
                                                        const at::Tensor& slot_labels, const at::Tensor& extra_labels,
                                                        const std::optional<at::Tensor>& t) {
  const CUDAGuard guard(cosine.device());
  const auto launch = [&](const StepStatisticsArguments& arguments) {
    const at::Tensor workspace = workspace_of(cuda::kStepStatisticsWorkspaceBytes, cosine.device());
    void* totals = workspace.mutable_data_ptr();
    // Not a kernel: in a CUDA graph a node that sets memory.
    C10_CUDA_CHECK(
        cudaMemsetAsync(totals, 0, cuda::kStepStatisticsWorkspaceBytes, static_cast<cudaStream_t>(current_stream())));
    require_launched("step_statistics", cuda::launch_step_statistics(arguments, totals, current_stream()));
  };
  return head_step::step_statistics(loss, labels, cosine, hard_count, max_cosine, omitted_mass, slot_labels,
                                    extra_labels, t, launch);
}

}  // namespace

TORCH_LIBRARY_IMPL(attfc, CUDA, library) {
  library.impl("head_rows", head_rows_cuda);
  library.impl("enqueue_fifo", enqueue_fifo_cuda);
  library.impl("enqueue_refresh", enqueue_refresh_cuda);
  library.impl("adasin_row_values", adasin_row_values_cuda);
  library.impl("adasin_loss", adasin_loss_cuda);
  library.impl("row_gradients", row_gradients_cuda);
  library.impl("step_statistics", step_statistics_cuda);
}

}  // namespace attfc
