// What the CUDA operators share: the device's limits, the current stream and the words of a refusal.
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

// Raises with the kernels' reason, if there is one, for not running the call.
void require_runnable(const char* op, const char* reason);

// Raises with the CUDA error, if there is one, of a launch.
void require_launched(const char* op, const char* error);

// "name(arguments)" -> "name_cuda(arguments)": the operator of this backend beside the one that takes any.
std::string cuda_schema(const char* schema);

}  // namespace attfc
