// The operands that both CUDA operators take; see cuda_ops.h.
#include "checks.h"
#include "cuda_device.h"
#include "cuda_ops.h"

namespace attfc {

SweepOperands check_operands(const char* op, const at::Tensor& embeddings, const at::Tensor& centers,
                             const at::Tensor& labels, const at::Tensor& center_labels,
                             const std::optional<at::Tensor>& center_scale, const std::optional<at::Tensor>& reference,
                             const std::optional<at::Tensor>& threshold, const std::optional<at::Tensor>& quad,
                             const std::optional<at::Tensor>& lin, const std::optional<at::Tensor>& constant) {
  check_operands_fit(op, embeddings, centers, labels, center_labels);
  const at::Device device = embeddings.device();
  const int64_t rows = embeddings.size(0), slots = centers.size(0);
  const std::optional<cuda::Dtype> dtype = kernel_dtype(embeddings.scalar_type());
  TORCH_CHECK_TYPE(dtype.has_value(), op, ": embeddings must be bfloat16 or float16 for backend cuda, got ",
                   embeddings.scalar_type());
  const auto dense = [&](const char* name, const std::optional<at::Tensor>& given, int64_t size) {
    if (!given) return at::Tensor();
    check_like(op, name, *given, at::kFloat, size, device);
    return given->contiguous();
  };
  return {*dtype,
          with_aligned_rows(embeddings),
          with_aligned_rows(centers),
          labels.contiguous(),
          center_labels.contiguous(),
          dense("center_scale", center_scale, slots),
          dense("reference", reference, rows),
          dense("threshold", threshold, rows),
          dense("quad", quad, rows),
          dense("lin", lin, rows),
          dense("const_", constant, rows)};
}

}  // namespace attfc
