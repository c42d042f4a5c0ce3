// The angle and the continued cosine in float32: the formulas of attfc_cuda/margins/base.py (angle) and
// attfc_cuda/ops/eager.py (psi), with their derivatives.
#pragma once

#include <math.h>

#include "gpu/gpu.h"

namespace attfc::cuda {

constexpr float kPi = 3.14159265358979f;
// The last step of float32 below 1. Beyond it the angle follows its chord, so that its slope stays finite.
constexpr float kEdge = 1 - 0x1p-23f;
constexpr float kChordSlope = 4096;  // acos(1 - 2^-23) / 2^-23 = 2^12 (1 + 2^-26)

struct Angle {
  float value, slope;  // theta and d theta / d cosine
};

ATTFC_DEVICE Angle angle(float cosine) {
  const float size = fabsf(cosine);
  if (size > kEdge) {
    const float chord = size <= 1 ? kChordSlope * (1 - size) : 0.0f;
    return {cosine > 0 ? chord : kPi - chord, size <= 1 ? -kChordSlope : 0.0f};
  }
  return {acosf(cosine), -1 / sqrtf((1 - cosine) * (1 + cosine))};
}

// The continued cosine: falls all the way, by another fold at each multiple of pi.
struct Psi {
  float value, slope;
};

ATTFC_DEVICE Psi psi(float a) {
  const float folds = fmaxf(floorf(a / kPi), 0);
  const float sign = fmodf(folds, 2) == 0 ? 1.0f : -1.0f;
  return {sign * cosf(a) - 2 * folds, -sign * sinf(a)};  // fault: psi_beyond_pi
}

}  // namespace attfc::cuda
