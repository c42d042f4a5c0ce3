// The CUDA operators: signatures, and the operands that both of them take.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "cuda_device.h"
#include "operands.h"
#include "schemas.h"

namespace attfc {

// The operands that both operators take, checked; rows start where the kernels' copies of 16 bytes may. The automatic
// choice gives operands that do not to another backend (attfc_cuda/ops/backend.py), except in compiled code, where
// addresses are not known: there a copy keeps the call right.
inline Operands cuda_operands(const char* op, const at::Tensor& embeddings, const at::Tensor& centers,
                              const at::Tensor& labels, const at::Tensor& center_labels,
                              const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values) {
  TORCH_CHECK_TYPE(embeddings.scalar_type() != at::kDouble, op,
                   ": embeddings must be bfloat16 or float16 for backend cuda, got ", embeddings.scalar_type());
  return Operands(op, embeddings, centers, labels, center_labels, center_scale, row_values, 16);
}

NegativeLogSumExp negative_logsumexp_cuda(const at::Tensor& embeddings, const at::Tensor& centers,
                                          const at::Tensor& labels, const at::Tensor& center_labels,
                                          const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                                          double scale, double grad_tolerance, bool need_grad, bool need_moments);

at::Tensor center_gradient_cuda(const at::Tensor& grad_lse, const at::Tensor& lse,
                                const std::optional<at::Tensor>& target_grad, const at::Tensor& embeddings,
                                const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& center_labels,
                                const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                                double scale, double grad_tolerance);

}  // namespace attfc
