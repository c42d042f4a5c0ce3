// The operands of a sweep over class centres, the same for every kernel of cpu/ and cuda/. Knows no torch; csrc/ops
// fills it in.
#pragma once

#include <math.h>

#include <cstdint>

#include "modulation.h"

namespace attfc {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// The rows of the table `row_values`, in their order; attfc_cuda/ops/row_values.py says what each number is.
enum RowValue { kTargetLogit, kThreshold, kQuad, kLin, kConstant, kNumRowValues };

// "real" is float, or double for Dtype::kFloat64. Strides are in elements; a row is contiguous. The cosine is
// c_bj = center_scale_j (x_b . w_j), its modulation N(c) that of modulation.h.
struct SweepInputs {
  Dtype dtype;  // of embeddings and centers
  int64_t num_rows, num_centers, dim;
  const void* embeddings;  // [num_rows, dim]
  int64_t embedding_stride;
  const void* centers;  // [num_centers, dim]; the content of an empty slot is never used
  int64_t center_stride;
  const int64_t* labels;         // [num_rows]; below 0: the row is ignored, whatever it holds
  const int64_t* center_labels;  // [num_centers]; below 0: an empty slot
  const void* center_scale;      // [num_centers] real, not negative, or null: 1; that of an empty slot is never used
  const void* row_values;        // [num_row_values, num_rows] real
  int num_row_values;            // 0: nothing; 1: the target logit, no modulation; kNumRowValues: all

  ATTFC_HOST_DEVICE bool has_target_logit() const { return num_row_values > kTargetLogit; }
  ATTFC_HOST_DEVICE bool is_modulated() const { return num_row_values == kNumRowValues; }

  // One number of the table, which must hold it.
  template <class Real>
  ATTFC_HOST_DEVICE Real row_value(RowValue which, int64_t row) const {
    return static_cast<const Real*>(row_values)[which * num_rows + row];
  }
  // -inf: the row has none.
  template <class Real>
  ATTFC_HOST_DEVICE Real target_logit(int64_t row) const {
    return has_target_logit() ? row_value<Real>(kTargetLogit, row) : -static_cast<Real>(INFINITY);
  }
  // A threshold of +inf: nothing is modulated.
  template <class Real>
  ATTFC_HOST_DEVICE RowModulation<Real> modulation(int64_t row) const {
    if (!is_modulated()) return no_modulation<Real>();
    return {row_value<Real>(kThreshold, row), row_value<Real>(kQuad, row), row_value<Real>(kLin, row),
            row_value<Real>(kConstant, row)};
  }
};

}  // namespace attfc
