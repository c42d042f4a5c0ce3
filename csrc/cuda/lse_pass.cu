// The lse pass's launcher: which instantiation, and the maps of its two operands.
#include "lse_pass.h"

#include "lse_pass_kernel.h"

namespace attfc::cuda {

namespace {

template <class Config, class Element>
const char* launch(const LsePassParameters& parameters, int64_t row_blocks, void* stream) {
  return gpu::launch(lse_pass_kernel<Config, Element>,
                     gpu::Grid{static_cast<unsigned>(row_blocks), static_cast<unsigned>(parameters.sweep.splits)},
                     Config::kThreads, sizeof(LsePassShared<Config>), stream, parameters);
}

template <class Config>
const char* launch(Dtype dtype, const LsePassParameters& parameters, int64_t row_blocks, void* stream) {
  return dtype == Dtype::kBFloat16 ? launch<Config, gpu::BFloat16>(parameters, row_blocks, stream)
                                   : launch<Config, gpu::Float16>(parameters, row_blocks, stream);
}

}  // namespace

const char* launch_lse_pass(Dtype dtype, int dim, LsePassParameters& parameters, int64_t row_blocks, void* stream) {
  const SweepParameters& sweep = parameters.sweep;
  const bool bfloat16 = dtype == Dtype::kBFloat16;
  const char* error = gpu::encode_tensor_map(
      parameters.embeddings, {sweep.embeddings, bfloat16, sweep.num_rows, dim, sweep.embedding_stride, kLsePassRows});
  if (error != nullptr) return error;
  error = gpu::encode_tensor_map(parameters.centers,
                                 {sweep.centers, bfloat16, sweep.num_centers, dim, sweep.center_stride, kLsePassTile});
  if (error != nullptr) return error;
  switch (dim) {
    case 128: return launch<LsePassConfig<128, 5>>(dtype, parameters, row_blocks, stream);
    case 256: return launch<LsePassConfig<256, 5>>(dtype, parameters, row_blocks, stream);
    case 512: return launch<LsePassConfig<512, 5>>(dtype, parameters, row_blocks, stream);
  }
  return "the lse pass is compiled for D = 128, 256 and 512";
}

}  // namespace attfc::cuda
