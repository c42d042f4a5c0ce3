// What the launcher hands to the centre gradient's kernels.
#pragma once

#include "../modulation.h"
#include "gpu/gpu.h"

namespace attfc::cuda {

// A row's numbers as the centre gradient uses them, ready for 16-byte copies. Nullable arguments, ignored rows and rows
// past the end are resolved here, once, by center_gradient_rows_kernel.
struct RowNumbers {
  // label below 0: nothing of the row counts. weight, target_weight: what q N' is multiplied by, and the weight of a
  // slot of the own class; weight_scale included.
  struct alignas(16) Weights {
    int64_t label;
    float weight, target_weight;
  } weights;
  struct alignas(16) Bend {
    RowModulation<float> modulation;
  } bend;
  // omissible: the mass of a block's centres that may be left out of this row.
  struct alignas(16) Softmax {
    float lse, omissible;
  } softmax;
};
constexpr int kRowNumberChunks = sizeof(RowNumbers) / 16;
static_assert(sizeof(RowNumbers) == 48);

struct CenterGradientParameters {
  int64_t num_centers;
  const void* embeddings;
  int64_t embedding_stride;
  const void* centers;
  int64_t center_stride;
  const int64_t* center_labels;
  const float* center_scale;
  const RowNumbers* row_numbers;  // of whole tiles
  int tiles;
  float scale;
  const float* weight_scale;
  void* center_grad;
};

}  // namespace attfc::cuda
