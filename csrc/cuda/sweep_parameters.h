// What the launcher hands to the sweep and merge kernels.
#pragma once

#include "../partial_lse.h"
#include "../sweep_inputs.h"
#include "gpu/gpu.h"

namespace attfc::cuda {

// One number per (split, row), at [split * num_rows + row]; gradient [split * num_rows + row][dim].
struct PartialSums {
  float *reference, *sum, *moment_quad, *moment_lin, *moment_const, *omitted, *max_cosine;
  int64_t* hard_count;
  float* gradient;
};

// What the gradient pass of sm_90a goes through instead of all centres (live_tiles.h): for each of its blocks of rows a
// list of tiles of kLiveTile centres, of which each split takes its even share; lse is final and takes R's place.
constexpr int kLiveTile = 128;
struct LiveTiles {
  const int* lists = nullptr;   // [row blocks, num_tiles]; null: all centres
  const int* counts = nullptr;  // [row blocks]
  int num_tiles = 0;
  const float* lse = nullptr;  // [num_rows]
};

struct SweepParameters : SweepInputs {
  float scale, grad_tolerance;
  int splits;
  int64_t tiles_per_split;
  PartialSums partial;
  LiveTiles live;
};

// What the 16-bit format of p N' center_scale asks for.
template <class Element>
struct WeightRange;

// bfloat16 has float32's range: R may start at the target logit and lag the maximum by 2^40 (kSafeDistance).
template <>
struct WeightRange<gpu::BFloat16> {
  static constexpr bool kStartsAtTarget = true, kCarriesScale = false;
  static constexpr float kDistance = kSafeDistance;
  ATTFC_DEVICE static float row_scale(float, float) { return 1; }
};

// float16 spans 2^-24 .. 2^16. R starts at the first maximum (a target far above would push p under the range) and lags
// by 2^8 at most; weights are scaled by 2^7 over the largest |N'|, so that they reach up to 2^15 and down to 2^-31 of
// R. A center_scale above 1 widens them, and R keeps that much further above.
template <>
struct WeightRange<gpu::Float16> {
  static constexpr bool kStartsAtTarget = false, kCarriesScale = true;
  static constexpr float kDistance = 5.545f;
  ATTFC_DEVICE static float row_scale(float quad, float lin) {
    const float slope = 2 * fabsf(quad) + fabsf(lin);
    return 128 / (slope > 1 ? slope : 1.0f);
  }
};

}  // namespace attfc::cuda
