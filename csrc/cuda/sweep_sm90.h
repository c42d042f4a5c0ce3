// The sweep with its gradient by wgmma, on sm_90a: interface and parameters; sweep_sm90_kernel.h says what it computes.
#pragma once

#include "gpu/sm90.h"
#include "sweep.h"
#include "sweep_parameters.h"

namespace attfc::cuda {

struct SweepSm90Parameters {
  gpu::TensorMap embeddings, centers;
  SweepParameters sweep;  // tiles_per_split: of 64 centres
};

// nullptr: kernels for sm_90a, this one and the lse pass, can take these operands here. Else why not.
const char* why_not_sm90(const DeviceLimits& device, const SweepArguments& arguments);

// Bytes of shared memory of a block at this D; 0: no kernel has it.
size_t sweep_sm90_shared_bytes(int64_t dim);

// nullptr, or what went wrong.
const char* launch_sweep_sm90(const SweepParameters& sweep, int64_t row_blocks, void* stream);

}  // namespace attfc::cuda
