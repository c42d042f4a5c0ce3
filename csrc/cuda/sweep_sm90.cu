// The launcher of the sweep by wgmma: where it can run, which instantiation, and the maps of its two operands.
#include "sweep_sm90.h"

#include "launcher.h"
#include "sweep_sm90_kernel.h"

namespace attfc::cuda {

namespace {

template <class Config, class Element>
const char* launch(const SweepSm90Parameters& parameters, int64_t row_blocks, void* stream) {
  return gpu::launch(sweep_sm90_kernel<Config, Element>,
                     gpu::Grid{static_cast<unsigned>(row_blocks), static_cast<unsigned>(parameters.sweep.splits)},
                     Config::kThreads, sizeof(SweepSm90Shared<Config>), stream, parameters);
}

template <class Config>
const char* launch(const SweepSm90Parameters& parameters, int64_t row_blocks, void* stream) {
  return parameters.sweep.dtype == Dtype::kBFloat16 ? launch<Config, gpu::BFloat16>(parameters, row_blocks, stream)
                                                    : launch<Config, gpu::Float16>(parameters, row_blocks, stream);
}

}  // namespace

const char* why_not_sm90(const DeviceLimits& device, const SweepArguments& arguments) {
  constexpr int64_t kMost = kMaxGridX - 128;  // and a tile past the end
  if (device.compute_capability != 90) return "wgmma and TMA need compute capability 9.0";
  if (!device.has_sm90a_code) return "wgmma and TMA need code for 9.0a, and this build has none";
  if (arguments.num_centers == 0) return "there are no centers";
  if (arguments.num_centers > kMost || arguments.num_rows > kMost) return "TMA counts rows in 32 bits";
  return nullptr;
}

size_t sweep_sm90_shared_bytes(int64_t dim) {
  return dim == 512   ? sizeof(SweepSm90Shared<SweepSm90Config<512>>)
         : dim == 256 ? sizeof(SweepSm90Shared<SweepSm90Config<256>>)
                      : 0;
}

const char* launch_sweep_sm90(const SweepParameters& sweep, int64_t row_blocks, void* stream) {
  SweepSm90Parameters parameters{};
  parameters.sweep = sweep;
  const bool bfloat16 = sweep.dtype == Dtype::kBFloat16;
  const char* error = gpu::encode_tensor_map(parameters.embeddings, {sweep.embeddings, bfloat16, sweep.num_rows,
                                                                     sweep.dim, sweep.embedding_stride, kSm90Rows});
  if (error != nullptr) return error;
  error = gpu::encode_tensor_map(
      parameters.centers, {sweep.centers, bfloat16, sweep.num_centers, sweep.dim, sweep.center_stride, kSm90Half});
  if (error != nullptr) return error;
  switch (sweep.dim) {
    case 256: return launch<SweepSm90Config<256>>(parameters, row_blocks, stream);
    case 512: return launch<SweepSm90Config<512>>(parameters, row_blocks, stream);
  }
  return "the sweep by wgmma is compiled for D = 256 and 512";
}

}  // namespace attfc::cuda
