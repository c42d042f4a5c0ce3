// gpu::launch of csrc/cuda/gpu/device.h against a CUDA runtime of this file's own: what is launched, and whose error is
// told. Compiled by nvcc with -cudart none; needs no GPU.
#include <cstdio>
#include <cstring>

#include "csrc/cuda/gpu/gpu.h"

namespace {

struct Launched {
  int count = 0;
  dim3 grid, threads;
  size_t shared_bytes = 0;
  void* stream = nullptr;
  long long value = 0;
} launched;

// The runtime's memory of the last error, and what the next calls answer.
cudaError_t last_error = cudaSuccess, launch_answer = cudaSuccess, attribute_answer = cudaSuccess;

cudaError_t answer(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

struct Parameters {
  long long value;
};
ATTFC_KERNEL(32, 1) kernel(const Parameters) {}

int failures = 0;
void check(bool good, const char* what) {
  if (!good) std::printf("FAILED %s\n", what);
  failures += good ? 0 : 1;
}

const char* launch() {
  return attfc::gpu::launch(kernel, attfc::gpu::Grid{3, 2}, 64, 1000, reinterpret_cast<void*>(16), Parameters{7});
}

}  // namespace

extern "C" {
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return answer(attribute_answer); }
cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3 threads, void** arguments, size_t bytes, cudaStream_t stream) {
  if (launch_answer == cudaSuccess) {
    launched = {launched.count + 1, grid, threads, bytes, stream, static_cast<Parameters*>(arguments[0])->value};
  }
  return answer(launch_answer);
}
// By their symbols: the toolkit's headers hold device code under these names.
cudaError_t own_cudaGetLastError() __asm__("cudaGetLastError");
cudaError_t own_cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* own_cudaGetErrorString(cudaError_t error) __asm__("cudaGetErrorString");
const char* own_cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid value" : error == cudaErrorNoDevice ? "no device" : "another";
}
// What nvcc's own code calls to register kernels.
void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }  // asked for where nothing is optimised away
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3 grid, dim3 threads, void** arguments, size_t bytes,
                               cudaStream_t stream) {
  return cudaLaunchKernel(nullptr, grid, threads, arguments, bytes, stream);
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaSuccess; }
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, struct CUstream_st*) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
}

int main() {
  check(launch() == nullptr && launched.count == 1, "a launch");
  check(launched.grid.x == 3 && launched.grid.y == 2 && launched.threads.x == 64, "its grid and block");
  check(launched.shared_bytes == 1000 && launched.stream == reinterpret_cast<void*>(16) && launched.value == 7,
        "its bytes, stream and parameters");

  last_error = cudaErrorNoDevice;  // of some earlier call, never asked for
  check(launch() == nullptr && launched.count == 2, "an earlier failure is not this launch's");
  check(cudaGetLastError() == cudaErrorNoDevice, "and stays for who asks for it");

  launch_answer = cudaErrorInvalidValue;
  const char* told = launch();
  check(told != nullptr && std::strcmp(told, "invalid value") == 0, "a failure of its own is told");
  check(cudaGetLastError() == cudaSuccess, "and not left behind");

  launch_answer = cudaSuccess;
  attribute_answer = cudaErrorNoDevice;
  told = launch();
  check(told != nullptr && std::strcmp(told, "no device") == 0 && launched.count == 2, "too much shared memory");
  check(cudaGetLastError() == cudaSuccess, "nor is that left behind");
  std::printf("%s\n", failures == 0 ? "1 passed, 0 failed" : "0 passed, 1 failed");
  return failures == 0 ? 0 : 1;
}
