// The lse pass: the first of the sweep's two passes on sm_90a. Interface and parameters; lse_pass_kernel.h says what it
// computes. Its partial sums have no gradient and go through the sweep's merge.
#pragma once

#include "gpu/sm90.h"
#include "sweep.h"
#include "sweep_parameters.h"

namespace attfc::cuda {

struct LsePassParameters {
  gpu::TensorMap embeddings, centers;
  SweepParameters sweep;  // tiles_per_split: of kLsePassTile centres; gradient and grad_tolerance are not used
  uint16_t* mass;         // TileMass [tiles, mass_rows]
  int64_t mass_rows;      // rows of whole blocks
};

// nullptr, or what went wrong. Fills in the two maps.
const char* launch_lse_pass(Dtype dtype, int dim, LsePassParameters& parameters, int64_t row_blocks, void* stream);

}  // namespace attfc::cuda
