// One row's running sums over a part of the class axis, and how two parts become one. Shared by the CPU sweep, the
// CUDA sweep and merge, and any merge across devices.
//
// A part has seen some of the negatives j of a row. With z_j = scale * N(c_j) and its own `reference` R it keeps
//     sum     = sum_j exp(z_j - R)                         lse = R + log(sum)
//     moment  = sum_{j hard} exp(z_j - R) (c_j^2, c_j, 1)   the gradients of quad, lin and const, before 1/sum
//     omitted = the share of `sum` whose gradient was left out
// The gradient accumulator sum_j exp(z_j - R) N'(c_j) w_j (one vector per row) lives with the caller; merge() says by
// what to scale it. R is any number near the largest z: it cancels in every result, so it needs no exactness.
#pragma once

#include <math.h>

#include "modulation.h"

namespace attfc {

// 2^40: float32 sums and products hold it easily, so R need not follow the running maximum more closely. The same
// distance as a difference of base-2 and of natural logarithms.
constexpr float kSafeDistanceLog2 = 40.0f;
constexpr float kSafeDistance = 27.725887f;

template <class Real>
struct PartialLse {
  Real reference;
  Real sum;
  Real moment_quad, moment_lin, moment_const;
  Real omitted;
  Real max_cosine;
  long long hard_count;
};

template <class Real>
ATTFC_HOST_DEVICE PartialLse<Real> empty_partial(Real reference) {
  return {reference, 0, 0, 0, 0, 0, -static_cast<Real>(INFINITY), 0};
}

// exp(from - to), for moving sums from one reference to another; 1 when both are -inf (nothing seen yet).
template <class Real>
ATTFC_HOST_DEVICE Real move_factor(Real from, Real to) {
  return from == to ? Real(1) : Real(exp(from - to));
}

// True when a tile whose largest logit is `max_logit` must not be summed relative to `reference`. An unset reference
// (-inf) always moves, unless the tile has nothing (-inf too).
template <class Real>
ATTFC_HOST_DEVICE bool must_move(Real max_logit, Real reference) {
  return max_logit > reference + Real(kSafeDistance);
}

template <class Real>
ATTFC_HOST_DEVICE void move_reference(PartialLse<Real>& part, Real reference) {
  const Real factor = move_factor(part.reference, reference);
  part.reference = reference;
  part.sum *= factor;
  part.moment_quad *= factor;  // fault: moments_move
  part.moment_lin *= factor;
  part.moment_const *= factor;
  part.omitted *= factor;
}

// Adds `other` to `part`. The caller scales its gradient accumulators by the two factors before adding them.
template <class Real>
ATTFC_HOST_DEVICE void merge(PartialLse<Real>& part, PartialLse<Real> other, Real& factor_part, Real& factor_other) {
  const Real reference = part.reference > other.reference ? part.reference : other.reference;
  factor_part = move_factor(part.reference, reference);
  factor_other = move_factor(other.reference, reference);
  move_reference(part, reference);
  move_reference(other, reference);
  part.sum += other.sum;
  part.moment_quad += other.moment_quad;
  part.moment_lin += other.moment_lin;
  part.moment_const += other.moment_const;
  part.omitted += other.omitted;
  part.hard_count += other.hard_count;
  part.max_cosine = part.max_cosine > other.max_cosine ? part.max_cosine : other.max_cosine;
}

// True (for SIMD vectors: lane by lane) when a tile of probability mass `tile_mass` may be left out of the gradient:
// with what was omitted before it stays under `tolerance` of the softmax's mass, the target's own (exp(target - R); 0
// where no target logit is known) included. `sum` already counts the tile.
template <class Value>
ATTFC_HOST_DEVICE auto may_omit(Value omitted, Value tile_mass, Value sum, Value target_mass, Value tolerance) {
  return omitted + tile_mass <= tolerance * (target_mass + sum);  // fault: omitted_so_far
}

}  // namespace attfc
