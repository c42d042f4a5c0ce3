// The instantiations of the centre gradient kernel: which shapes there are, one source file per D so that they compile
// in parallel.
#pragma once

#include "center_gradient.h"
#include "center_gradient_kernel.h"

namespace attfc::cuda {

// clang-format off
//                                                       D   centres rows stages product rows x columns   shared, KiB
using CenterGradientD128        = CenterGradientConfig<128, 64, 32, 4, 16, 16>;  //  79: two blocks on 163 and 227
using CenterGradientD256        = CenterGradientConfig<256, 64, 32, 4, 32, 16>;  // 143
using CenterGradientD256Compact = CenterGradientConfig<256, 64, 16, 4, 16, 16>;  //  88
using CenterGradientD512        = CenterGradientConfig<512, 64, 16, 4, 16, 16>;  // 152
using CenterGradientD512Wide    = CenterGradientConfig<512, 64, 32, 3, 32, 16>;  // 207: half the barriers
using CenterGradientD512Compact = CenterGradientConfig<512, 32, 16, 3, 16, 16>;  //  94: half the centres, twice the rows' traffic
// clang-format on

template <class Config, class Element>
const char* launch_center_gradient_kernel(const CenterGradientParameters& parameters, int64_t blocks, void* stream) {
  return gpu::launch(center_gradient_kernel<Config, Element>, gpu::Grid{static_cast<unsigned>(blocks), 1},
                     Config::kThreads, CenterGradientShared<Config, Element>::kBytes, stream, parameters);
}

template <class Config>
const char* launch_center_gradient_config(Dtype dtype, const CenterGradientParameters& parameters, int64_t blocks,
                                          void* stream);

#define ATTFC_INSTANTIATE_CENTER_GRADIENT(Config)                                                            \
  template <>                                                                                                \
  const char* launch_center_gradient_config<Config>(Dtype dtype, const CenterGradientParameters& parameters, \
                                                    int64_t blocks, void* stream) {                          \
    return dtype == Dtype::kBFloat16                                                                         \
               ? launch_center_gradient_kernel<Config, gpu::BFloat16>(parameters, blocks, stream)            \
               : launch_center_gradient_kernel<Config, gpu::Float16>(parameters, blocks, stream);            \
  }

}  // namespace attfc::cuda
