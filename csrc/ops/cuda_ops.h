// The CUDA operators: signatures, and the operands that both of them take, checked once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../cuda/sweep.h"
#include "cuda_device.h"
#include "schemas.h"

namespace attfc {

// Operands as the kernels read them: contiguous and aligned rows, dense numbers; an optional one that was not given is
// undefined.
struct SweepOperands {
  cuda::Dtype dtype;
  at::Tensor embeddings, centers, labels, center_labels, center_scale, reference, threshold, quad, lin, constant;

  // A kernel's arguments with these operands in them; what else it takes is for the caller to fill in.
  template <class Arguments>
  Arguments arguments(double scale, double grad_tolerance) const {
    Arguments filled{};
    filled.dtype = dtype;
    filled.rows = embeddings.size(0);
    filled.centers = centers.size(0);
    filled.dim = static_cast<int>(embeddings.size(1));
    filled.embeddings = embeddings.const_data_ptr();
    filled.embedding_stride = embeddings.stride(0);
    filled.center_data = centers.const_data_ptr();
    filled.center_stride = centers.stride(0);
    filled.labels = labels.const_data_ptr<int64_t>();
    filled.center_labels = center_labels.const_data_ptr<int64_t>();
    filled.center_scale = values_or_null(center_scale);
    filled.reference = values_or_null(reference);
    filled.threshold = values_or_null(threshold);
    filled.quad = values_or_null(quad);
    filled.lin = values_or_null(lin);
    filled.constant = values_or_null(constant);
    filled.scale = static_cast<float>(scale);
    filled.grad_tolerance = static_cast<float>(grad_tolerance);
    return filled;
  }
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
