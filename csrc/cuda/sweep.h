// The CUDA sweep over class centres: interface. Knows no torch; csrc/ops calls it. The same operation as
// csrc/cpu/sweep.h:
//
//     lse_b       = log sum_{j valid} exp(scale N(c_bj)),  c_bj = s_j x_b . w_j,  valid: l_j >= 0 and l_j != y_b
//     unit_grad_b = d lse_b / d x_b = scale sum_j q_bj N'(c_bj) s_j w_j
//     moments_b   = d lse_b / d (quad_b, lin_b, const_b)
//
// s = center_scale: 1 for unit centres, 1 / |w_j| for raw ones.
//
// Use: why_not() -> plan_sweep() -> allocate plan.workspace_bytes -> launch_sweep(). Two launches on the stream, five
// in two passes, no synchronisation, no allocation: capturable in a CUDA graph. Two runs on one device at one number of
// rows give the same bits (the number of splits depends on both).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../sweep_inputs.h"

namespace attfc::cuda {

// Of the device that the stream belongs to.
struct DeviceLimits {
  int compute_capability;  // 10 major + minor
  int shared_bytes;        // a block may have after opting in
  int multiprocessors;
  bool has_sm90a_code = true;  // what two passes need (gpu/sm90.h): the build has it
};

// Pointers are device pointers, numbers ("real" in SweepInputs) float.
struct SweepArguments : SweepInputs {
  float scale, grad_tolerance;
  bool need_grad;  // false: unit_grad is not written

  float* lse;           // [num_rows]
  int64_t* hard_count;  // [num_rows]
  float* max_cosine;    // [num_rows], over valid negatives; -inf where there is none
  float* omitted_mass;  // [num_rows], share of the softmax (target included) left out of unit_grad
  float* unit_grad;     // [num_rows, dim]
  float* moments;       // [num_rows, 3]
};

// Which kernel runs a sweep, or the gradient pass of two (two_pass.h).
enum class SweepKernel {
  kD128,  // sweep_d128.cu
  kD256,
  kD256Compact,  // sweep_d256.cu; compact: 99 KiB of shared memory
  kD512,
  kD512Wide,
  kD512Compact,  // sweep_d512.cu; 163, 227 and 99 KiB
  kSm90,         // sweep_sm90.cu: by wgmma, D 256 and 512, with the gradient
};

struct SweepPlan {
  SweepKernel kernel;
  int rows_per_block, centers_per_tile;
  int64_t row_blocks;
  int splits;  // parts of the class axis, summed separately and merged
  int64_t tiles_per_split;
  bool two_passes;
  int lse_splits;  // of the lse pass, where there are two; without a gradient the one pass
  size_t workspace_bytes;
};

// nullptr, or why this sweep cannot run here; the words complete "backend cuda cannot run: ...".
const char* why_not(const DeviceLimits& device, const SweepArguments& arguments);

// nullptr: such a sweep runs in two passes (two_pass.h). Else why in one; the words complete "one pass: ...".
const char* why_one_pass(const DeviceLimits& device, const SweepArguments& arguments);

SweepPlan plan_sweep(const DeviceLimits& device, const SweepArguments& arguments);

// nullptr, or the CUDA error. `workspace` is aligned to 16 bytes; `stream` is a cudaStream_t. No rows: no launch.
const char* launch_sweep(const SweepPlan& plan, const SweepArguments& arguments, void* workspace, void* stream);

}  // namespace attfc::cuda
