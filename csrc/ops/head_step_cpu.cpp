// The operators of a head step on the CPU: csrc/cpu/head_step.h behind the checks of head_step.h.
#include "../cpu/head_step.h"

#include <torch/library.h>

#include "head_step.h"
#include "parallel_for.h"

namespace attfc {
namespace {

at::Tensor workspace_of(size_t bytes) { return at::empty({static_cast<int64_t>(bytes)}, at::kByte); }

head_step::HeadRows head_rows_cpu(const at::Tensor& embeddings, const at::Tensor& labels, const at::Tensor& gallery,
                                  const at::Tensor& extra_centers, const at::Tensor& extra_labels,
                                  const std::optional<at::Tensor>& code_of_class,
                                  const std::optional<at::Tensor>& stored_centers,
                                  const std::optional<at::Tensor>& slot_labels,
                                  const std::optional<at::Tensor>& slot_of_class, at::ScalarType container_dtype,
                                  int64_t num_classes, double temperature, double class_code, double center_memory) {
  const auto launch = [](const HeadRowsArguments& arguments) {
    const at::Tensor workspace = workspace_of(cpu::head_rows_workspace_bytes(arguments));
    cpu::head_rows(arguments, parallel_for_torch, workspace.data_ptr());
  };
  return head_step::head_rows(embeddings, labels, gallery, extra_centers, extra_labels, code_of_class, stored_centers,
                              slot_labels, slot_of_class, container_dtype, num_classes, temperature, class_code,
                              center_memory, launch);
}

void launch_enqueue(const EnqueueArguments& arguments) { cpu::enqueue(arguments, parallel_for_torch); }

void enqueue_fifo_cpu(const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& clock,
                      const at::Tensor& new_centers, const at::Tensor& new_labels) {
  head_step::enqueue("enqueue_fifo", centers, labels, clock, std::nullopt, std::nullopt, new_centers, new_labels,
                     launch_enqueue);
}

void enqueue_refresh_cpu(const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& clock,
                         const at::Tensor& stamps, const at::Tensor& slot_of_class, const at::Tensor& new_centers,
                         const at::Tensor& new_labels) {
  head_step::enqueue("enqueue_refresh", centers, labels, clock, stamps, slot_of_class, new_centers, new_labels,
                     launch_enqueue);
}

at::Tensor adasin_row_values_cpu(const at::Tensor& labels, const at::Tensor& cosine, const at::Tensor& t,
                                 double margin_rad, double difficulty_weight, double momentum, double scale,
                                 bool half_angle, bool move_t) {
  return head_step::adasin_row_values(labels, cosine, t, margin_rad, difficulty_weight, momentum, scale, half_angle,
                                      move_t, cpu::adasin_row_values);
}

// embeddings, unit_grad, inverse_norm and centers are for the backward pass alone (attfc_cuda/ops/head_step.py).
head_step::AdaSinLoss adasin_loss_cpu(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                      const at::Tensor& labels, const at::Tensor& cosine, const at::Tensor& row_values,
                                      const at::Tensor& lse, const at::Tensor& hard_count, double margin_rad,
                                      double scale, bool straight_through) {
  return head_step::adasin_loss(labels, cosine, row_values, lse, hard_count, margin_rad, scale, straight_through,
                                cpu::adasin_loss);
}

at::Tensor row_gradients_cpu(const at::Tensor& upstream, const at::Tensor& embeddings, const at::Tensor& unit_grad,
                             const at::Tensor& inverse_norm, const at::Tensor& centers, const at::Tensor& labels,
                             const at::Tensor& lse_weight, const at::Tensor& cosine_weight) {
  const auto launch = [](const RowGradientArguments& arguments) {
    const at::Tensor workspace = workspace_of(cpu::row_gradients_workspace_bytes(arguments));
    cpu::row_gradients(arguments, parallel_for_torch, workspace.data_ptr());
  };
  return head_step::row_gradients(upstream, embeddings, unit_grad, inverse_norm, centers, labels, lse_weight,
                                  cosine_weight, launch);
}

std::tuple<at::Tensor, at::Tensor> step_statistics_cpu(const at::Tensor& loss, const at::Tensor& labels,
                                                       const at::Tensor& cosine, const at::Tensor& hard_count,
                                                       const at::Tensor& max_cosine, const at::Tensor& omitted_mass,
                                                       const at::Tensor& slot_labels, const at::Tensor& extra_labels,
                                                       const std::optional<at::Tensor>& t) {
  const auto launch = [](const StepStatisticsArguments& arguments) {
    cpu::step_statistics(arguments, parallel_for_torch);
  };
  return head_step::step_statistics(loss, labels, cosine, hard_count, max_cosine, omitted_mass, slot_labels,
                                    extra_labels, t, launch);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attfc, library) {
  for (const char* schema : kHeadStepSchemas) library.def(schema, {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(attfc, CPU, library) {
  library.impl("head_rows", head_rows_cpu);
  library.impl("enqueue_fifo", enqueue_fifo_cpu);
  library.impl("enqueue_refresh", enqueue_refresh_cpu);
  library.impl("adasin_row_values", adasin_row_values_cpu);
  library.impl("adasin_loss", adasin_loss_cpu);
  library.impl("row_gradients", row_gradients_cpu);
  library.impl("step_statistics", step_statistics_cpu);
}

}  // namespace attfc
