// What the launchers of both kernels share: which shape fits a device, and what operands must be like.
#pragma once

#include "sweep.h"

namespace attfc::cuda {

constexpr int64_t kMaxGridX = 2147483647;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// The first shape for this D whose block fits the device's shared memory, or null.
template <class Shape, size_t count>
const Shape* find_shape(const Shape (&shapes)[count], const DeviceLimits& device, int64_t dim) {
  for (const Shape& each : shapes) {
    if (each.dim == dim && each.shared_bytes <= static_cast<size_t>(device.shared_bytes)) return &each;
  }
  return nullptr;
}

// why_not() of what both kernels have: type, device, D, rows, the two operands.
template <class Shape, size_t count, class Arguments>
const char* why_not_operands(const Shape (&shapes)[count], const DeviceLimits& device, const Arguments& arguments) {
  if (arguments.dtype != Dtype::kBFloat16 && arguments.dtype != Dtype::kFloat16)
    return "it takes bfloat16 and float16, not float32 and float64";
  if (device.compute_capability < 80)
    return "it needs compute capability 8.0 or later (mma.sync for bfloat16, cp.async)";
  if (arguments.dim != 128 && arguments.dim != 256 && arguments.dim != 512) {
    return "it is compiled for D = 128, 256 and 512";
  }
  if (find_shape(shapes, device, arguments.dim) == nullptr)
    return "a block has too little shared memory on this device for this D";
  if (!aligned(arguments.embeddings, 16) || arguments.embedding_stride % 8 != 0) {
    return "rows of embeddings must start at multiples of 16 bytes";
  }
  if (!aligned(arguments.centers, 16) || arguments.center_stride % 8 != 0) {
    return "rows of centers must start at multiples of 16 bytes";
  }
  if (arguments.num_rows > kMaxGridX) return "it takes at most 2^31 - 1 rows";
  return nullptr;
}

}  // namespace attfc::cuda
