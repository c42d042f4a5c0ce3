// Numbers of a dtype that is known at run time only. For kernels that touch each number once or twice: the choice is
// the same in all threads and costs less than the access.
#pragma once

#include "../sweep_inputs.h"
#include "gpu/gpu.h"

namespace attfc::cuda {

ATTFC_DEVICE uint16_t narrow(Dtype dtype, float value) {
  return static_cast<uint16_t>(dtype == Dtype::kBFloat16 ? gpu::pack<gpu::BFloat16>(value, 0)
                                                         : gpu::pack<gpu::Float16>(value, 0));
}
ATTFC_DEVICE float widen(Dtype dtype, uint16_t bits) {
  return dtype == Dtype::kBFloat16 ? gpu::to_float(gpu::BFloat16{bits}) : gpu::to_float(gpu::Float16{bits});
}

ATTFC_DEVICE float load_element(Dtype dtype, const void* data, int64_t at) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(data)[at];
  return widen(dtype, static_cast<const uint16_t*>(data)[at]);
}
ATTFC_DEVICE void store_element(Dtype dtype, void* data, int64_t at, float value) {
  if (dtype == Dtype::kFloat32) {
    static_cast<float*>(data)[at] = value;
  } else {
    static_cast<uint16_t*>(data)[at] = narrow(dtype, value);
  }
}
ATTFC_DEVICE float rounded_to(Dtype dtype, float value) {
  return dtype == Dtype::kFloat32 ? value : widen(dtype, narrow(dtype, value));
}

}  // namespace attfc::cuda
