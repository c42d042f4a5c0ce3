// The CPU sweep over class centres: interface. Knows no torch; csrc/ops calls it.
//
// One pass gives, for every row b of unit embeddings x against class centres w_j (see ../sweep_inputs.h for c,
// modulation.h for N, partial_lse.h for the sums):
//     lse_b       = log sum_{j valid} exp(scale N(c_bj)),  valid: l_j >= 0 and l_j != y_b
//     unit_grad_b = d lse_b / d x_b = scale sum_j q_bj N'(c_bj) center_scale_j w_j
//     moments_b   = d lse_b / d (quad_b, lin_b, const_b)
// Nothing of size rows x centers is stored: the workspace is bounded by kMaxWorkspaceBytes or, for huge batches, by one
// accumulator per row.
#pragma once

#include "arguments.h"

namespace attfc::cpu {

struct SweepArguments : SweepInputs {
  double scale, grad_tolerance;
  bool need_grad;     // false: unit_grad is not written
  bool need_moments;  // false: moments is not written

  void* lse;            // [num_rows] real; -inf for an ignored row
  int64_t* hard_count;  // [num_rows]
  void* max_cosine;     // [num_rows] real, over valid negatives; -inf where there is none
  void* omitted_mass;   // [num_rows] real, share of the softmax left out of unit_grad
  void* unit_grad;      // [num_rows, dim] real
  void* moments;        // [num_rows, 3] real
};

size_t sweep_workspace_bytes(const SweepArguments& arguments);
void sweep(const SweepArguments& arguments, const ParallelFor& parallel_for, void* workspace);

}  // namespace attfc::cpu
