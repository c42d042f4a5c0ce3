// The CUDA operators: signatures, and the operands that both of them take, checked once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../cuda/sweep.h"
#include "schemas.h"

namespace attfc {

// Operands as the kernels read them: contiguous and aligned rows, dense numbers; an optional one that was not given is
// undefined.
struct SweepOperands {
  cuda::Dtype dtype;
  at::Tensor embeddings, centers, labels, center_labels, center_scale, reference, threshold, quad, lin, constant;
};

// Raises unless the shapes, dtypes and devices are those that the kernels read.
SweepOperands check_operands(const char* op, const at::Tensor& embeddings, const at::Tensor& centers,
                             const at::Tensor& labels, const at::Tensor& center_labels,
                             const std::optional<at::Tensor>& center_scale, const std::optional<at::Tensor>& reference,
                             const std::optional<at::Tensor>& threshold, const std::optional<at::Tensor>& quad,
                             const std::optional<at::Tensor>& lin, const std::optional<at::Tensor>& constant);

NegativeLogSumExp negative_logsumexp_cuda(const at::Tensor& embeddings, const at::Tensor& centers,
                                          const at::Tensor& labels, const at::Tensor& center_labels,
                                          const std::optional<at::Tensor>& center_scale,
                                          const std::optional<at::Tensor>& reference,
                                          const std::optional<at::Tensor>& threshold,
                                          const std::optional<at::Tensor>& quad, const std::optional<at::Tensor>& lin,
                                          const std::optional<at::Tensor>& constant, double scale,
                                          double grad_tolerance, bool need_grad, bool need_moments);

at::Tensor center_gradient_cuda(const at::Tensor& grad_lse, const at::Tensor& lse,
                                const std::optional<at::Tensor>& target_grad, const at::Tensor& embeddings,
                                const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& center_labels,
                                const std::optional<at::Tensor>& center_scale,
                                const std::optional<at::Tensor>& reference, const std::optional<at::Tensor>& threshold,
                                const std::optional<at::Tensor>& quad, const std::optional<at::Tensor>& lin,
                                const std::optional<at::Tensor>& constant, double scale, double grad_tolerance);

}  // namespace attfc
