// What the CUDA operators share; see cuda_device.h.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <mutex>
#include <optional>
#include <vector>

#include "cuda_device.h"

namespace attfc {
namespace {

cuda::DeviceLimits ask_limits(int index) {
  const auto attribute = [index](cudaDeviceAttr which) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, index));
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrMultiProcessorCount),
          ATTFC_CUDA_HAS_SM90A != 0};
}

}  // namespace

const cuda::DeviceLimits& device_limits(int index) {
  static std::mutex mutex;
  static std::vector<std::optional<cuda::DeviceLimits>> known(c10::cuda::device_count());
  const std::lock_guard<std::mutex> lock(mutex);
  TORCH_CHECK_INDEX(index >= 0 && index < static_cast<int>(known.size()), "device_limits: index must be below ",
                    known.size(), ", the number of CUDA devices, got ", index);
  if (!known[index]) known[index] = ask_limits(index);
  return *known[index];
}

void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

void require_runnable(const char* op, const char* reason) {
  TORCH_CHECK_NOT_IMPLEMENTED(reason == nullptr, op, ": backend cuda must be able to run this, got: ", reason);
}

void require_launched(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, op, ": the CUDA kernel must launch, got: ", error);
}

std::string cuda_schema(const char* schema) {
  std::string text = schema;
  return text.insert(text.find('('), "_cuda");
}

}  // namespace attfc
