// The CPU sweep over class centres: interface. Knows no torch; csrc/ops calls it.
//
// One pass gives, for every row b of unit embeddings x against unit centres w_j (see modulation.h for N, partial_lse.h
// for the sums):
//     lse_b       = log sum_{j valid} exp(scale N(c_bj)),  c_bj = x_b . w_j,  valid: l_j >= 0 and l_j != y_b
//     unit_grad_b = d lse_b / d x_b = scale sum_j q_bj N'(c_bj) w_j
//     moments_b   = d lse_b / d (quad_b, lin_b, const_b)
// Nothing of size rows x centers is stored: the workspace is bounded by kMaxWorkspaceBytes or, for huge batches, by one
// accumulator per row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace attfc::cpu {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };
enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

// Row statistics ("real") are float, or double for Dtype::kFloat64. Strides are in elements; a row is contiguous.
struct SweepArguments {
  Dtype dtype;
  int64_t rows, centers, dim;
  const void* embeddings;  // [rows, dim]
  int64_t embedding_stride;
  const void* center_data;  // [centers, dim]; the content of an empty slot is never used
  int64_t center_stride;
  const int64_t* labels;         // [rows]; below 0: the row is ignored (lse -inf, gradient 0)
  const int64_t* center_labels;  // [centers]; below 0: an empty slot
  const void* reference;         // [rows] real, the target logit, or null
  const void* threshold;         // [rows] real, or null: no modulation, and the next three are not read
  const void* quad;              // [rows] real
  const void* lin;               // [rows] real
  const void* constant;          // [rows] real
  double scale;
  double grad_tolerance;
  bool need_grad;     // false: unit_grad is not written
  bool need_moments;  // false: moments is not written

  void* lse;            // [rows] real
  int64_t* hard_count;  // [rows]
  void* max_cosine;     // [rows] real, over valid negatives; -inf where there is none
  void* omitted_mass;   // [rows] real, share of the softmax left out of unit_grad
  void* unit_grad;      // [rows, dim] real
  void* moments;        // [rows, 3] real
};

// Runs body(0) ... body(count - 1), in any order and on any threads.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

constexpr size_t kMaxWorkspaceBytes = size_t{32} << 20;

size_t sweep_workspace_bytes(const SweepArguments& arguments);
void sweep(const SweepArguments& arguments, const ParallelFor& parallel_for, void* workspace);

// The instruction set that sweep() uses: the best that this processor and this build have, at most
// ATTFC_CPU_CAPABILITY (generic, avx2, avx512, avx512_bf16) where that variable is set.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace attfc::cpu
