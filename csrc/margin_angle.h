// The two functions of an angle that margins are made of, with their derivatives: the formulas of
// attfc_cuda/margins/angles.py, one definition for the kernels of cpu/ and cuda/. `Real` is float or double.
#pragma once

#include <math.h>

#include "modulation.h"

namespace attfc {

constexpr double kPi = 3.14159265358979323846;
// The last step of float32 below 1. Beyond it the angle follows its chord, so that its slope stays finite.
constexpr double kAngleEdge = 1 - 0x1p-23;
constexpr double kChordSlope = 4096.0000406901052;  // acos(1 - 2^-23) / 2^-23

template <class Real>
struct Angle {
  Real value, slope;  // theta and d theta / d cosine
};

template <class Real>
ATTFC_HOST_DEVICE Angle<Real> angle(Real cosine) {
  const Real size = cosine < 0 ? -cosine : cosine, slope = Real(kChordSlope), pi = Real(kPi);
  if (size > Real(kAngleEdge)) {
    const Real chord = size <= 1 ? slope * (1 - size) : Real(0);
    return {cosine > 0 ? chord : pi - chord, size <= 1 ? -slope : Real(0)};
  }
  return {Real(acos(cosine)), -1 / Real(sqrt((1 - cosine) * (1 + cosine)))};
}

// The continued cosine: falls all the way, by another fold at each multiple of pi.
template <class Real>
struct Psi {
  Real value, slope;
};

template <class Real>
ATTFC_HOST_DEVICE Psi<Real> psi(Real a) {
  const Real quotient = Real(floor(a / Real(kPi))), folds = quotient > 0 ? quotient : Real(0);
  const Real sign = folds - 2 * Real(floor(folds / 2)) == 0 ? Real(1) : Real(-1);
  return {sign * Real(cos(a)) - 2 * folds, -sign * Real(sin(a))};  // fault: psi_beyond_pi
}

}  // namespace attfc
