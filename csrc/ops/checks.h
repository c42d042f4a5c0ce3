// Argument checks of the operators: only what would make a kernel read out of bounds or misread memory. The public
// Python functions check the rest, so that every backend says the same.
#pragma once

#include <ATen/core/Tensor.h>

#include "../sweep_inputs.h"

namespace attfc {

inline void check_matrix(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 2, op, ": ", name, " must have 2 dimensions, got ", tensor.sizes());
}

inline void check_like(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype, int64_t size,
                       at::Device device) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == size, op, ": ", name, " must have shape [", size, "], got ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == device, op, ": ", name, " must be on ", device, ", got ", tensor.device());
}

// The operands that every operator takes: two matrices of one dtype and D, and their labels.
inline void check_operands_fit(const char* op, const at::Tensor& embeddings, const at::Tensor& centers,
                               const at::Tensor& labels, const at::Tensor& center_labels) {
  check_matrix(op, "embeddings", embeddings);
  check_matrix(op, "centers", centers);
  const at::Device device = embeddings.device();
  const int64_t dim = embeddings.size(1);
  TORCH_CHECK_VALUE(centers.size(1) == dim, op, ": centers must have D = ", dim, " columns, got ", centers.size(1));
  TORCH_CHECK_TYPE(centers.scalar_type() == embeddings.scalar_type(), op, ": centers must be ",
                   embeddings.scalar_type(), " as embeddings, got ", centers.scalar_type());
  TORCH_CHECK_VALUE(centers.device() == device, op, ": centers must be on ", device, ", got ", centers.device());
  check_like(op, "labels", labels, at::kLong, embeddings.size(0), device);
  check_like(op, "center_labels", center_labels, at::kLong, centers.size(0), device);
}

inline void check_row_values(const char* op, const at::Tensor& table, at::ScalarType dtype, int64_t size,
                             at::Device device) {
  TORCH_CHECK_TYPE(table.scalar_type() == dtype, op, ": row_values must be ", dtype, ", got ", table.scalar_type());
  const int64_t count = table.dim() == 2 ? table.size(0) : -1;
  TORCH_CHECK_VALUE((count == 0 || count == 1 || count == kNumRowValues) && table.size(1) == size, op,
                    ": row_values must have shape [0, 1 or ", int{kNumRowValues}, ", ", size, "], got ", table.sizes());
  TORCH_CHECK_VALUE(table.device() == device, op, ": row_values must be on ", device, ", got ", table.device());
}

// A tensor whose rows are contiguous (any row stride) and start at multiples of `alignment` bytes, copied only where
// they do not.
inline at::Tensor with_contiguous_rows(const at::Tensor& matrix, int64_t alignment = 1) {
  const bool rows_contiguous = matrix.stride(1) == 1 || matrix.size(1) <= 1;
  const at::Tensor rows = rows_contiguous && matrix.stride(0) >= matrix.size(1) ? matrix : matrix.contiguous();
  const bool aligned = reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % alignment == 0 &&
                       rows.stride(0) * static_cast<int64_t>(rows.element_size()) % alignment == 0;
  return aligned ? rows : rows.clone(at::MemoryFormat::Contiguous);
}

}  // namespace attfc
