// What the CUDA operators share: the device's limits, the current stream, operands in the layout that the kernels read,
// and the words of a refusal. csrc/cuda knows no torch; this is where its raw pointers come from.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "../cuda/sweep.h"

namespace attfc {

// Of CUDA device `index`; asked of the driver once.
const cuda::DeviceLimits& device_limits(int index);

// cudaStream_t of torch's current stream on the current device.
void* current_stream();

// The kernels' name of a dtype; nullopt where they have none.
std::optional<cuda::Dtype> kernel_dtype(at::ScalarType dtype);

// A tensor whose rows are contiguous and start at multiples of 16 bytes, copied only where they do not. The automatic
// choice gives such operands to another backend (attfc_cuda/ops/backend.py), except in compiled code, where addresses
// are not known: there the copy keeps the call right.
at::Tensor with_aligned_rows(const at::Tensor& matrix);

// Pointer to float32 numbers, one for each row or slot; null for a tensor that was not given.
const float* values_or_null(const at::Tensor& values);

// Raises with the kernels' reason, if there is one, for not running the call.
void require_runnable(const char* op, const char* reason);

// Raises with the CUDA error, if there is one, of a launch.
void require_launched(const char* op, const char* error);

// "name(arguments)" -> "name_cuda(arguments)": the operator of this backend beside the one that takes any.
std::string cuda_schema(const char* schema);

}  // namespace attfc
