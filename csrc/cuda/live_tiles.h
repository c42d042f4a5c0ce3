// Which tiles of centres the gradient needs, once lse is known: between the two passes of the sweep on sm_90a.
//
// The lse pass left the mass of every (row, tile of 128 centres) (TileMass), lse is final, so what may be left out no
// longer depends on an order: a tile is left out of a block of rows when for each of them
//     q = mass / exp(lse_b) <= tolerance / tiles (1 + exp(target_b - lse_b))
// so that all tiles together leave out at most the tolerance's share of the row's softmax, target included. What they
// do leave out is reported.
#pragma once

#include "sweep_parameters.h"

namespace attfc::cuda {

constexpr int kLiveTilesRows = 64;  // rows that share a list: the gradient pass's block

struct LiveTilesParameters : SweepInputs {
  const uint16_t* mass;  // TileMass [tiles, mass_rows]
  int64_t mass_rows;
  int tiles;
  const float* lse;  // [num_rows]
  float grad_tolerance;
  int* lists;           // [row blocks, tiles], ascending
  int* counts;          // [row blocks]
  float* omitted_mass;  // [num_rows], share of the softmax
};

const char* launch_live_tiles(const LiveTilesParameters& parameters, void* stream);

}  // namespace attfc::cuda
