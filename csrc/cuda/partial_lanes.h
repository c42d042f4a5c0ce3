// A row's partial sums across lanes and in the workspace: what the merge and the lse pass share.
#pragma once

#include "sweep_parameters.h"

namespace attfc::cuda {

ATTFC_DEVICE PartialLse<float> of_other_lane(const PartialLse<float>& own, int lanes) {
  return {gpu::shuffle_xor(own.reference, lanes),    gpu::shuffle_xor(own.sum, lanes),
          gpu::shuffle_xor(own.moment_quad, lanes),  gpu::shuffle_xor(own.moment_lin, lanes),
          gpu::shuffle_xor(own.moment_const, lanes), gpu::shuffle_xor(own.omitted, lanes),
          gpu::shuffle_xor(own.max_cosine, lanes),   gpu::shuffle_xor(own.hard_count, lanes)};
}

ATTFC_DEVICE PartialLse<float> read_partial(const PartialSums& partial, int64_t at) {
  return {partial.reference[at],    partial.sum[at],     partial.moment_quad[at], partial.moment_lin[at],
          partial.moment_const[at], partial.omitted[at], partial.max_cosine[at],  partial.hard_count[at]};
}

ATTFC_DEVICE void write_partial(const PartialSums& partial, int64_t at, const PartialLse<float>& part) {
  partial.reference[at] = part.reference;
  partial.sum[at] = part.sum;
  partial.moment_quad[at] = part.moment_quad;
  partial.moment_lin[at] = part.moment_lin;
  partial.moment_const[at] = part.moment_const;
  partial.omitted[at] = part.omitted;
  partial.max_cosine[at] = part.max_cosine;
  partial.hard_count[at] = part.hard_count;
}

}  // namespace attfc::cuda
