// The rows of an AttFC step with the AdaSin margin on a GPU: what stands before and after the sweep, in four launches.
// Knows no torch. The mathematics is that of attfc_cuda/margins/adasin.py with its default switches.
//
//     launch_unit_rows         u = x / |x| in the sweep's format, cos theta = u . g
//     launch_adasin_modulation t <- t + (1 - momentum) (mean cos theta - t);  Phi = t + h D(theta);
//                              threshold = psi(theta + m), target logit = scale psi(theta + m), lin = Phi
//     (launch_sweep)
//     launch_adasin_loss       T = psi(theta + Phi m) with a hard negative, else psi(theta + m);
//                              loss = mean softplus(lse - scale T), and its derivatives by lse and cos theta
//     launch_row_gradients     d loss / d x, through the normalisation
//
// No synchronisation, no allocation, t stays on the device: capturable in a CUDA graph. Two runs give the same bits.
#pragma once

#include <cstdint>

#include "sweep.h"

namespace attfc::cuda {

// Rows with a label below 0 are ignored whatever they hold: no share in t or the loss, gradient 0.
struct UnitRowsArguments {
  int64_t rows;
  int dim;
  Dtype input_dtype, unit_dtype;
  const void* embeddings;  // [rows, dim] of input_dtype
  int64_t embedding_stride;
  const float* centers;  // [rows, dim], each row's own unit centre
  int64_t center_stride;
  void* units;          // [rows, dim] of unit_dtype
  float* inverse_norm;  // [rows]; 0 for a row shorter than 1e-6, which has no direction
  float* cosine;        // [rows]
};
const char* launch_unit_rows(const UnitRowsArguments& arguments, void* stream);

struct AdaSinSettings {
  float margin_rad, difficulty_weight, momentum, scale;
  bool half_angle;        // D(theta) = sin(theta / 2), else sin theta
  bool straight_through;  // dT / dcos = 1
};

struct AdaSinModulationArguments {
  AdaSinSettings settings;
  bool move_t;  // a training step
  int64_t rows;
  const int64_t* labels;
  const float* cosine;
  float* t;           // one number, read and written
  float* row_values;  // [kNumRowValues, rows], the sweep's
};
const char* launch_adasin_modulation(const AdaSinModulationArguments& arguments, void* stream);

struct AdaSinLossArguments {
  AdaSinSettings settings;
  int64_t rows;
  const int64_t* labels;
  const float *cosine, *lin, *lse;  // lin: Phi, a row of row_values
  const int64_t* hard_count;
  float* loss;           // one number: the mean over rows that are not ignored, 0 without any
  float* row_loss;       // [rows]
  float* target_logit;   // [rows], scale T
  float* lse_weight;     // [rows], d loss / d lse
  float* cosine_weight;  // [rows], d loss / d cos theta
};
const char* launch_adasin_loss(const AdaSinLossArguments& arguments, void* stream);

struct RowGradientArguments {
  int64_t rows;
  int dim;
  Dtype input_dtype;
  const int64_t* labels;
  const void* embeddings;
  int64_t embedding_stride;
  const float* centers;
  int64_t center_stride;
  const float *inverse_norm, *lse_weight, *cosine_weight;
  const float* unit_grad;  // [rows, dim], the sweep's
  const float* upstream;   // one number, d objective / d loss
  void* grad;              // [rows, dim] of input_dtype
};
const char* launch_row_gradients(const RowGradientArguments& arguments, void* stream);

}  // namespace attfc::cuda
