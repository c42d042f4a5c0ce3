// What both sweeps of the CPU read, and how they are run. Knows no torch; csrc/ops fills it in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace attfc::cpu {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Row and slot values ("real") are float, or double for Dtype::kFloat64. Strides are in elements; a row is contiguous.
// The cosine is c_bj = center_scale_j (x_b . w_j), its modulation N(c) that of ../modulation.h.
struct SweepInputs {
  Dtype dtype;
  int64_t rows, centers, dim;
  const void* embeddings;  // [rows, dim]
  int64_t embedding_stride;
  const void* center_data;  // [centers, dim]; the content of an empty slot is never used
  int64_t center_stride;
  const int64_t* labels;         // [rows]; below 0: the row is ignored, whatever it holds
  const int64_t* center_labels;  // [centers]; below 0: an empty slot
  const void* center_scale;      // [centers] real, or null: 1; that of an empty slot is never used
  const void* reference;         // [rows] real, the target logit, or null
  const void* threshold;         // [rows] real, or null: no modulation, and the next three are not read
  const void* quad;              // [rows] real
  const void* lin;               // [rows] real
  const void* constant;          // [rows] real
  double scale;
  double grad_tolerance;
};

// Runs body(0) ... body(count - 1), in any order and on any threads.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

constexpr size_t kMaxWorkspaceBytes = size_t{32} << 20;

}  // namespace attfc::cpu
