// The gradient of the class centres on the CPU: interface. Knows no torch; csrc/ops calls it.
//
// With lse_b known from the sweep (sweep.h), the gradient of sum_b grad_lse_b lse_b + target_grad_b c_b,own is
//     G_bj  = grad_lse_b scale q_bj N'(c_bj)   for a valid negative, q_bj = exp(scale N(c_bj) - lse_b)
//             target_grad_b                    for every slot of the row's own class
//             0                                for an empty slot or an ignored row
//     out_j = sum_b G_bj x_b                                                                 without center_scale
//     out_j = s_j (a_j - (a_j . w_j) s_j^2 w_j),  a_j = sum_b G_bj x_b,  s_j = center_scale_j    with it
// The second form is the gradient of raw centres through their normalisation, s_j = 1 / |w_j|.
//
// A group of rows and a tile of T of the S slots may be left out when the tile holds none of the rows' own classes
// and each row's share of it is at most grad_tolerance (T / S) (1 + exp(target_logit_b - lse_b)), in units of
// exp(lse_b): so a row leaves out at most grad_tolerance of its softmax, target included, whatever the order. The
// workspace holds the batch twice, packed, and at most kMaxWorkspaceBytes (or one tile) more.
#pragma once

#include "arguments.h"

namespace attfc::cpu {

struct CenterGradientArguments : SweepInputs {
  double scale, grad_tolerance;
  const void* grad_lse;     // [num_rows] real
  const void* lse;          // [num_rows] real; -inf: the row has no negatives
  const void* target_grad;  // [num_rows] real, or null: 0

  void* gradient;  // [num_centers, dim] in the inputs' dtype, contiguous; every row is written once
};

size_t center_gradient_workspace_bytes(const CenterGradientArguments& arguments);
void center_gradient(const CenterGradientArguments& arguments, const ParallelFor& parallel_for, void* workspace);

}  // namespace attfc::cpu
