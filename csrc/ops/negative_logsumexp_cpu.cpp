// attfc::negative_logsumexp on the CPU: checks, outputs, workspace and torch's threads around csrc/cpu/sweep.h.
#include <ATen/ops/empty.h>

#include "../cpu/sweep.h"
#include "operands.h"
#include "parallel_for.h"
#include "schemas.h"

namespace attfc {

NegativeLogSumExp negative_logsumexp_cpu(const at::Tensor& embeddings, const at::Tensor& centers,
                                         const at::Tensor& labels, const at::Tensor& center_labels,
                                         const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                                         double scale, double grad_tolerance, bool need_grad, bool need_moments) {
  const Operands operands("negative_logsumexp", embeddings, centers, labels, center_labels, center_scale, row_values);
  const int64_t rows = operands.inputs.num_rows, dim = operands.inputs.dim;
  const auto options = embeddings.options().dtype(operands.real).memory_format(at::MemoryFormat::Contiguous);
  at::Tensor lse = at::empty({rows}, options), max_cosine = at::empty({rows}, options),
             omitted_mass = at::empty({rows}, options), moments = at::empty({need_moments ? rows : 0, 3}, options),
             unit_grad = at::empty({need_grad ? rows : 0, dim}, options),
             hard_count = at::empty({rows}, options.dtype(at::kLong));

  const cpu::SweepArguments arguments{
      operands.inputs,
      scale,
      grad_tolerance,
      need_grad,
      need_moments,
      lse.data_ptr(),
      hard_count.data_ptr<int64_t>(),
      max_cosine.data_ptr(),
      omitted_mass.data_ptr(),
      unit_grad.data_ptr(),
      moments.data_ptr(),
  };
  const at::Tensor workspace =
      at::empty({static_cast<int64_t>(cpu::sweep_workspace_bytes(arguments))}, options.dtype(at::kByte));
  cpu::sweep(arguments, parallel_for_torch, workspace.data_ptr());
  return {lse, hard_count, max_cosine, omitted_mass, unit_grad, moments};
}

}  // namespace attfc
