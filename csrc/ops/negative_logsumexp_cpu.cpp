// attfc::negative_logsumexp on the CPU: checks, outputs, workspace and torch's threads around csrc/cpu/sweep.h.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "../cpu/sweep.h"
#include "checks.h"
#include "schemas.h"

namespace attfc {
namespace {

constexpr const char* kOp = "negative_logsumexp";

cpu::Dtype sweep_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return cpu::Dtype::kFloat32;
    case at::kDouble: return cpu::Dtype::kFloat64;
    case at::kBFloat16: return cpu::Dtype::kBFloat16;
    case at::kHalf: return cpu::Dtype::kFloat16;
    default: TORCH_CHECK_TYPE(false, kOp, ": embeddings must be float32, float64, bfloat16 or float16, got ", dtype);
  }
}

void parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace

NegativeLogSumExp negative_logsumexp_cpu(const at::Tensor& embeddings, const at::Tensor& centers,
                                         const at::Tensor& labels, const at::Tensor& center_labels,
                                         const std::optional<at::Tensor>& center_scale,
                                         const std::optional<at::Tensor>& reference,
                                         const std::optional<at::Tensor>& threshold,
                                         const std::optional<at::Tensor>& quad, const std::optional<at::Tensor>& lin,
                                         const std::optional<at::Tensor>& constant, double scale, double grad_tolerance,
                                         bool need_grad, bool need_moments) {
  check_matrix(kOp, "embeddings", embeddings);
  check_matrix(kOp, "centers", centers);
  const at::Device device = embeddings.device();
  const int64_t rows = embeddings.size(0), dim = embeddings.size(1), slots = centers.size(0);
  TORCH_CHECK_VALUE(centers.size(1) == dim, kOp, ": centers must have D = ", dim, " columns, got ", centers.size(1));
  TORCH_CHECK_TYPE(centers.scalar_type() == embeddings.scalar_type(), kOp, ": centers must be ",
                   embeddings.scalar_type(), " as embeddings, got ", centers.scalar_type());
  TORCH_CHECK_VALUE(centers.device() == device, kOp, ": centers must be on ", device, ", got ", centers.device());
  check_like(kOp, "labels", labels, at::kLong, rows, device);
  check_like(kOp, "center_labels", center_labels, at::kLong, slots, device);

  const at::ScalarType real = embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto row_values = [&](const char* name, const std::optional<at::Tensor>& given) {
    if (!given) return at::Tensor();
    check_like(kOp, name, *given, real, rows, device);
    return given->contiguous();
  };
  const at::Tensor row_reference = row_values("reference", reference),
                   row_threshold = row_values("threshold", threshold), row_quad = row_values("quad", quad),
                   row_lin = row_values("lin", lin), row_constant = row_values("const_", constant);
  const auto pointer = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };

  const auto options = embeddings.options().dtype(real).memory_format(at::MemoryFormat::Contiguous);
  at::Tensor lse = at::empty({rows}, options), max_cosine = at::empty({rows}, options),
             omitted_mass = at::empty({rows}, options), moments = at::empty({need_moments ? rows : 0, 3}, options),
             unit_grad = at::empty({need_grad ? rows : 0, dim}, options),
             hard_count = at::empty({rows}, options.dtype(at::kLong));

  const at::Tensor x = with_contiguous_rows(embeddings), w = with_contiguous_rows(centers),
                   row_labels = labels.contiguous(), slot_labels = center_labels.contiguous();
  cpu::SweepArguments arguments{
      sweep_dtype(embeddings.scalar_type()),
      rows,
      slots,
      dim,
      x.const_data_ptr(),
      x.stride(0),
      w.const_data_ptr(),
      w.stride(0),
      row_labels.const_data_ptr<int64_t>(),
      slot_labels.const_data_ptr<int64_t>(),
      pointer(row_reference),
      pointer(row_threshold),
      pointer(row_quad),
      pointer(row_lin),
      pointer(row_constant),
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
  cpu::sweep(arguments, parallel_for, workspace.data_ptr());
  return {lse, hard_count, max_cosine, omitted_mass, unit_grad, moments};
}

}  // namespace attfc
