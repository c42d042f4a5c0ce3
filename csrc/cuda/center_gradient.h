// The second CUDA sweep: the gradient of the class centres, from recomputed logits. Interface. Knows no torch; csrc/ops
// calls it. With the sweep's c_bj, N and N' (sweep.h) and lse known:
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

// Pointers are device pointers, read only except center_grad. Strides are in elements; a row is contiguous. Numbers per
// row are float32 and dense. Nullable pointers say so. rows and centers may be 0 (then their pointers may be null).
struct CenterGradientArguments {
  Dtype dtype;  // of embeddings, center_data and center_grad: bfloat16 or float16
  int64_t rows, centers;
  int dim;                   // 128, 256 or 512
  const float* grad_lse;     // [rows], upstream gradient of lse
  const float* lse;          // [rows], of the first sweep (its own bits are not needed); -inf: the row has no negatives
  const float* target_grad;  // [rows], d objective / d c_bj of each slot of the row's own class; null: 0
  const void* embeddings;    // [rows, dim], aligned to 16 bytes; an ignored row's content is never read
  int64_t embedding_stride;  // a multiple of 8
  const void* center_data;   // [centers, dim], aligned to 16 bytes; an empty slot's content is never read
  int64_t center_stride;     // a multiple of 8
  const int64_t* labels;     // [rows]; below 0: the row is ignored, whatever its numbers are
  const int64_t* center_labels;  // [centers]; below 0: an empty slot, center_grad 0
  const float* center_scale;     // [centers], or null: 1 and no projection; an empty slot's is never used
  const float* reference;        // [rows], the target logit, or null: a row's softmax has no target; only for skipping
  const float* threshold;        // [rows], or null: no modulation, and the next three are not read
  const float* quad;             // [rows], or null: 0
  const float* lin;              // [rows], or null: 0
  const float* constant;         // [rows], or null: 0
  float scale;
  float grad_tolerance;  // at most this share of each row's softmax is left out; 0: only what is exactly 0
  // One number, or null: 1. G is multiplied by it before it is rounded to dtype, and the sums are divided by it.
  // float16 needs it (a power of two that brings the largest |G| near 2^10, say); bfloat16 does not. Positive, and its
  // reciprocal finite too. It is read on the device, so nothing waits for it.
  const float* weight_scale;

  void* center_grad;  // [centers, dim] of dtype, dense, aligned to 16 bytes
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
// checked are embeddings, center_data and center_grad (alignment).
const char* why_not(const DeviceLimits& device, const CenterGradientArguments& arguments);

CenterGradientPlan plan_center_gradient(const DeviceLimits& device, const CenterGradientArguments& arguments);

// nullptr, or the CUDA error. `workspace` is aligned to 16 bytes (null where workspace_bytes is 0); `stream` is a
// cudaStream_t.
const char* launch_center_gradient(const CenterGradientPlan& plan, const CenterGradientArguments& arguments,
                                   void* workspace, void* stream);

}  // namespace attfc::cuda
