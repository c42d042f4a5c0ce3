// What both CPU operators do before their kernel: check the shared arguments and lay them out for csrc/cpu.
#pragma once

#include <ATen/Parallel.h>

#include "../cpu/arguments.h"
#include "checks.h"

namespace attfc {

// The kernel's inputs, and the tensors that keep their memory.
class CpuInputs {
 public:
  CpuInputs(const char* op, const at::Tensor& embeddings, const at::Tensor& centers, const at::Tensor& labels,
            const at::Tensor& center_labels, const std::optional<at::Tensor>& center_scale,
            const std::optional<at::Tensor>& reference, const std::optional<at::Tensor>& threshold,
            const std::optional<at::Tensor>& quad, const std::optional<at::Tensor>& lin,
            const std::optional<at::Tensor>& constant, double scale, double grad_tolerance)
      : op_(op), device_(embeddings.device()) {
    check_operands_fit(op, embeddings, centers, labels, center_labels);
    const int64_t rows = embeddings.size(0), dim = embeddings.size(1), slots = centers.size(0);
    real = embeddings.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;

    inputs.dtype = dtype_of(embeddings.scalar_type());
    inputs.rows = rows;
    inputs.centers = slots;
    inputs.dim = dim;
    const at::Tensor x = with_contiguous_rows(embeddings), w = with_contiguous_rows(centers);
    inputs.embeddings = keep(x);
    inputs.embedding_stride = x.stride(0);
    inputs.center_data = keep(w);
    inputs.center_stride = w.stride(0);
    inputs.labels = static_cast<const int64_t*>(keep(labels.contiguous()));
    inputs.center_labels = static_cast<const int64_t*>(keep(center_labels.contiguous()));
    inputs.center_scale = values("center_scale", center_scale, slots);
    inputs.reference = values("reference", reference, rows);
    inputs.threshold = values("threshold", threshold, rows);
    inputs.quad = values("quad", quad, rows);
    inputs.lin = values("lin", lin, rows);
    inputs.constant = values("const_", constant, rows);
    inputs.scale = scale;
    inputs.grad_tolerance = grad_tolerance;
  }

  // The memory of `size` reals, or null where there are none.
  const void* values(const char* name, const std::optional<at::Tensor>& given, int64_t size) {
    if (!given) return nullptr;
    check_like(op_, name, *given, real, size, device_);
    return keep(given->contiguous());
  }

  at::ScalarType real;
  cpu::SweepInputs inputs{};

 private:
  cpu::Dtype dtype_of(at::ScalarType dtype) const {
    switch (dtype) {
      case at::kFloat: return cpu::Dtype::kFloat32;
      case at::kDouble: return cpu::Dtype::kFloat64;
      case at::kBFloat16: return cpu::Dtype::kBFloat16;
      case at::kHalf: return cpu::Dtype::kFloat16;
      default: TORCH_CHECK_TYPE(false, op_, ": embeddings must be float32, float64, bfloat16 or float16, got ", dtype);
    }
  }

  const void* keep(const at::Tensor& tensor) {
    kept_.push_back(tensor);
    return tensor.const_data_ptr();
  }

  const char* op_;
  at::Device device_;
  std::vector<at::Tensor> kept_;
};

// csrc/cpu's ParallelFor on torch's threads.
inline void parallel_for_torch(int64_t count, const std::function<void(int64_t)>& body) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace attfc
