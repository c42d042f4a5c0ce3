// The instantiations of the sweep kernel: which shapes there are, one source file per D so that they compile in
// parallel.
#pragma once

#include "sweep.h"
#include "sweep_kernel.h"

namespace attfc::cuda {

//                             D   rows tile stages product rows x columns      shared memory of a block, KiB
using SweepD128 = SweepConfig<128, 64, 32, 4, 16, 16>;         //                74: two blocks on 163 and 227
using SweepD256 = SweepConfig<256, 64, 32, 4, 32, 16>;         //               138
using SweepD256Compact = SweepConfig<256, 64, 16, 4, 16, 16>;  //                85
using SweepD512 = SweepConfig<512, 64, 16, 4, 16, 16>;         //               149
using SweepD512Wide = SweepConfig<512, 64, 32, 3, 32, 16>;  //               202: half the barriers and reads of centres
using SweepD512Compact = SweepConfig<512, 32, 16, 3, 16, 16>;  //                91

template <class Config, class Element, bool grad>
const char* launch_sweep_kernel(const SweepParameters& parameters, int64_t row_blocks, void* stream) {
  return gpu::launch(sweep_kernel<Config, Element, grad>,
                     gpu::Grid{static_cast<unsigned>(row_blocks), static_cast<unsigned>(parameters.splits)},
                     Config::kThreads, SweepShared<Config, Element, grad>::kBytes, stream, parameters);
}

template <class Config>
const char* launch_sweep_config(Dtype dtype, bool grad, const SweepParameters& parameters, int64_t row_blocks,
                                void* stream);

#define ATTFC_INSTANTIATE_SWEEP(Config)                                                                \
  template <>                                                                                          \
  const char* launch_sweep_config<Config>(Dtype dtype, bool grad, const SweepParameters& parameters,   \
                                          int64_t row_blocks, void* stream) {                          \
    if (dtype == Dtype::kBFloat16) {                                                                   \
      return grad ? launch_sweep_kernel<Config, gpu::BFloat16, true>(parameters, row_blocks, stream)   \
                  : launch_sweep_kernel<Config, gpu::BFloat16, false>(parameters, row_blocks, stream); \
    }                                                                                                  \
    return grad ? launch_sweep_kernel<Config, gpu::Float16, true>(parameters, row_blocks, stream)      \
                : launch_sweep_kernel<Config, gpu::Float16, false>(parameters, row_blocks, stream);    \
  }

}  // namespace attfc::cuda
