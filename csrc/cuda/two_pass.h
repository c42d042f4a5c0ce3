// The sweep in two passes, on sm_90a: all centres for lse (lse_pass.h), then those tiles alone that the gradient needs
// (live_tiles.h), with lse known. Five launches; two without the gradient.
#pragma once

#include "sweep.h"
#include "sweep_parameters.h"

namespace attfc::cuda {

int choose_lse_splits(const DeviceLimits& device, const SweepArguments& arguments);

const char* launch_two_passes(const SweepPlan& plan, const SweepArguments& arguments, void* workspace, void* stream);

// The one-pass kernel of a plan (sweep.cu); over a list of tiles it is the gradient pass.
const char* launch_sweep_kernel(const SweepPlan& plan, bool need_grad, const SweepParameters& sweep, void* stream);

}  // namespace attfc::cuda
