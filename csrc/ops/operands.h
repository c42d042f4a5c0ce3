// What every operator does before its kernel: check the operands that all of them take, and lay them out for csrc/cpu
// or csrc/cuda.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../sweep_inputs.h"
#include "checks.h"

namespace attfc {

// The kernels' name of a dtype; nullopt where they have none.
inline std::optional<Dtype> kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return Dtype::kFloat32;
    case at::kDouble: return Dtype::kFloat64;
    case at::kBFloat16: return Dtype::kBFloat16;
    case at::kHalf: return Dtype::kFloat16;
    default: return std::nullopt;
  }
}

// A kernel's inputs, and the tensors that keep their memory.
class Operands {
 public:
  // alignment: bytes at whose multiples the kernel wants rows to start. Raises unless shapes, dtypes and devices fit.
  Operands(const char* op, const at::Tensor& embeddings, const at::Tensor& centers, const at::Tensor& labels,
           const at::Tensor& center_labels, const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
           int64_t alignment = 1)
      : real(embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        op_(op),
        device_(embeddings.device()) {
    check_operands_fit(op, embeddings, centers, labels, center_labels);
    const std::optional<Dtype> dtype = kernel_dtype(embeddings.scalar_type());
    TORCH_CHECK_TYPE(dtype.has_value(), op, ": embeddings must be float32, float64, bfloat16 or float16, got ",
                     embeddings.scalar_type());
    inputs.dtype = *dtype;
    inputs.num_rows = embeddings.size(0);
    inputs.num_centers = centers.size(0);
    inputs.dim = embeddings.size(1);
    const at::Tensor x = with_contiguous_rows(embeddings, alignment), w = with_contiguous_rows(centers, alignment);
    inputs.embeddings = keep(x);
    inputs.embedding_stride = x.stride(0);
    inputs.centers = keep(w);
    inputs.center_stride = w.stride(0);
    inputs.labels = static_cast<const int64_t*>(keep(labels.contiguous()));
    inputs.center_labels = static_cast<const int64_t*>(keep(center_labels.contiguous()));
    inputs.center_scale = values("center_scale", center_scale, inputs.num_centers);
    check_row_values(op, row_values, real, inputs.num_rows, device_);
    inputs.row_values = keep(row_values.contiguous());
    inputs.num_row_values = static_cast<int>(row_values.size(0));
  }

  // The memory of `size` reals, or null where there are none.
  const void* values(const char* name, const std::optional<at::Tensor>& given, int64_t size) {
    if (!given) return nullptr;
    check_like(op_, name, *given, real, size, device_);
    return keep(given->contiguous());
  }

  at::ScalarType real;
  SweepInputs inputs{};

 private:
  const void* keep(const at::Tensor& tensor) {
    kept_.push_back(tensor);
    return tensor.const_data_ptr();
  }

  const char* op_;
  at::Device device_;
  std::vector<at::Tensor> kept_;
};

}  // namespace attfc
