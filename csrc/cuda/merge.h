// The merge kernel's launcher (merge.cu).
#pragma once

#include "sweep_parameters.h"

namespace attfc::cuda {

// Outputs as in SweepArguments; unit_grad null: no gradient. With final_lse the splits hold parts of the gradient
// alone: unit_grad is the one output.
struct MergeParameters {
  PartialSums partial;
  int64_t num_rows;
  int dim, splits;
  const float* target_logit;  // [num_rows], or null
  const float* final_lse;     // [num_rows], or null
  float scale;
  float* lse;
  int64_t* hard_count;
  float *max_cosine, *omitted_mass, *unit_grad, *moments;
};

const char* launch_merge(const MergeParameters& parameters, void* stream);

}  // namespace attfc::cuda
