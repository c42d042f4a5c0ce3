// The gradient of the class centres on CUDA, from recomputed logits. Interface. Knows no torch; csrc/ops
// calls it. With the sweep's c_bj, N and N' (sweep.h) and its lse known:
//
//     q_bj  = exp(scale N(c_bj) - lse_b)            valid negatives: l_j >= 0, y_b >= 0, l_j != y_b, lse_b > -inf
//     G_bj  = grad_lse_b scale q_bj N'(c_bj)        valid negatives
//             target_grad_b                         where l_j = y_b >= 0, in every such slot
//             0                                     elsewhere
//     out_j = sum_b G_bj x_b                                                            without center_scale
//     out_j = s_j (sum_b G_bj x_b - (sum_b G_bj c_bj) s_j w_j),  s_j = center_scale_j   with it
//
// The second form is the gradient of the raw centre where s_j = 1 / |w_j|: the part along it is projected out.
//
// Use: why_not() -> plan_center_gradient() -> allocate plan.workspace_bytes -> launch_center_gradient(). Two launches
// on the stream (one without rows, none without centres), no synchronisation, no allocation: capturable in a CUDA
// graph. Every element of center_grad is written exactly once and never read: it needs no initialisation. No atomics:
// two runs give the same bits.
#pragma once

#include "sweep.h"

namespace attfc::cuda {

// Pointers are device pointers, read only except center_grad; numbers ("real" in SweepInputs) are float. dim is 128,
// 256 or 512; rows of embeddings, centers and center_grad are aligned to 16 bytes. No content of ignored rows and empty
// slots is read. Counts may be 0 (then their pointers may be null). The target logit counts only for what is left out.
struct CenterGradientArguments : SweepInputs {
  float scale;
  float grad_tolerance;  // at most this share of each row's softmax is left out; 0: only what is exactly 0

  const float* grad_lse;     // [num_rows], upstream gradient of lse
  const float* lse;          // [num_rows], of the sweep (its own bits are not needed); -inf: the row has no negatives
  const float* target_grad;  // [num_rows], d objective / d c_bj of each slot of the row's own class; null: 0
  // One number, or null: 1. G is multiplied by it before it is rounded to dtype, and the sums are divided by it.
  // float16 needs it (a power of two that brings the largest |G| near 2^10, say); bfloat16 does not. Positive, and its
  // reciprocal finite too. It is read on the device, so nothing waits for it.
  const float* weight_scale;

  void* center_grad;  // [num_centers, dim] of dtype, dense, aligned to 16 bytes
};

// Which kernel runs it; as for the sweep, another family is one more value here.
enum class CenterGradientKernel {
  kD128,  // center_gradient_d128.cu
  kD256,
  kD256Compact,  // center_gradient_d256.cu; compact: 99 KiB of shared memory
  kD512,
  kD512Wide,
  kD512Compact,  // center_gradient_d512.cu; 163, 227 and 99 KiB
};

struct CenterGradientPlan {
  CenterGradientKernel kernel;
  int centers_per_block, rows_per_tile;
  int64_t blocks;
  int tiles;  // of rows
  size_t workspace_bytes;
};

// nullptr, or why this gradient cannot run here; the words complete "backend cuda cannot run: ...". The pointers
// checked are embeddings, centers and center_grad (alignment).
const char* why_not(const DeviceLimits& device, const CenterGradientArguments& arguments);

CenterGradientPlan plan_center_gradient(const DeviceLimits& device, const CenterGradientArguments& arguments);

// nullptr, or the CUDA error. `workspace` is aligned to 16 bytes (null where workspace_bytes is 0); `stream` is a
// cudaStream_t.
const char* launch_center_gradient(const CenterGradientPlan& plan, const CenterGradientArguments& arguments,
                                   void* workspace, void* stream);

}  // namespace attfc::cuda
