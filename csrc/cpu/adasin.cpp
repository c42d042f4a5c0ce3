// AdaSin's rows before and after the sweep (../head_step.h). B numbers each: bound by nothing.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../margin_angle.h"
#include "head_step.h"

namespace attfc::cpu {
namespace {

// torch.lerp's formula, so that t moves by the same bits as margins.base.move_average.
float lerp(float from, float to, float weight) {
  return weight < 0.5f ? from + weight * (to - from) : to - (to - from) * (1 - weight);
}

template <class Real>
void row_values(const AdaSinRowValuesArguments& p) {
  const Real* cosine = static_cast<const Real*>(p.cosine);
  if (p.move_t) {
    double sum = 0;
    int64_t count = 0;
    for (int64_t row = 0; row < p.rows; ++row) {
      if (p.labels[row] < 0 || !std::isfinite(cosine[row])) continue;  // one bad image must not spoil t for good
      sum += cosine[row];
      ++count;
    }
    if (count > 0) {
      const float mean = static_cast<float>(sum / static_cast<double>(count));
      *p.t = lerp(*p.t, mean, static_cast<float>(1 - p.settings.momentum));
    }
  }
  Real* table = static_cast<Real*>(p.row_values);
  for (int64_t row = 0; row < p.rows; ++row) {
    const Real theta = angle(p.labels[row] >= 0 ? cosine[row] : Real(0)).value;
    const Real target = psi(theta + static_cast<Real>(p.settings.margin_rad)).value;
    const Real difficulty = std::sin(p.settings.half_angle ? theta / 2 : theta);
    table[kTargetLogit * p.rows + row] = static_cast<Real>(p.settings.scale) * target;
    table[kThreshold * p.rows + row] = target;
    table[kQuad * p.rows + row] = table[kConstant * p.rows + row] = 0;
    table[kLin * p.rows + row] = static_cast<Real>(*p.t) + static_cast<Real>(p.settings.difficulty_weight) * difficulty;
  }
}

template <class Real>
void loss(const AdaSinLossArguments& p) {
  const auto read = [](const void* values) { return static_cast<const Real*>(values); };
  const auto write = [](void* values) { return static_cast<Real*>(values); };
  const Real *cosine = read(p.cosine), *lse = read(p.lse), *phi = read(p.row_values) + kLin * p.rows;
  const Real scale = static_cast<Real>(p.settings.scale), margin = static_cast<Real>(p.settings.margin_rad);
  int64_t count = 0;
  for (int64_t row = 0; row < p.rows; ++row) count += p.labels[row] >= 0;
  const Real share = 1 / static_cast<Real>(std::max<int64_t>(count, 1));
  double sum = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const bool counts = p.labels[row] >= 0;
    const Angle<Real> theta = angle(counts ? cosine[row] : Real(0));
    const Psi<Real> bent = psi(theta.value + margin * (counts && p.hard_count[row] > 0 ? phi[row] : Real(1)));
    const Real target = scale * bent.value;
    const Real excess = counts ? lse[row] - target : -std::numeric_limits<Real>::infinity();
    // softplus and its derivative, without overflow on either side. A NaN stays one.
    const Real tail = std::exp(-std::abs(excess));
    const Real value = (excess < 0 ? Real(0) : excess) + std::log1p(tail);
    const Real weight = (excess > 0 ? Real(1) : tail) / (1 + tail);
    const Real slope = p.settings.straight_through ? Real(1) : bent.slope * theta.slope;
    write(p.target_logit)[row] = target;
    write(p.row_loss)[row] = value;
    write(p.lse_weight)[row] = share * weight;
    write(p.cosine_weight)[row] = counts ? -share * weight * scale * slope : Real(0);
    sum += value;
  }
  *write(p.loss) = static_cast<Real>(sum) * share;
}

}  // namespace

void adasin_row_values(const AdaSinRowValuesArguments& p) {
  if (p.is_double) {
    row_values<double>(p);
  } else {
    row_values<float>(p);
  }
}

void adasin_loss(const AdaSinLossArguments& p) {
  if (p.is_double) {
    loss<double>(p);
  } else {
    loss<float>(p);
  }
}

}  // namespace attfc::cpu
