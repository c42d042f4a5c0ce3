// AdaSin's kernels (adasin.h): one block for all rows, since both need a mean over them in a fixed order; 512 threads,
// 2 float32 a warp in shared memory, twice. Bound by latency.
#include "adasin.h"

#include "../margin_angle.h"
#include "block_sums.h"

namespace attfc::cuda {

namespace {

constexpr int kThreads = 512;
using RowSums = BlockSums<float, 2, kThreads>;

ATTFC_DEVICE float margin_of(const AdaSinSettings& settings) { return static_cast<float>(settings.margin_rad); }
ATTFC_DEVICE float scale_of(const AdaSinSettings& settings) { return static_cast<float>(settings.scale); }

ATTFC_KERNEL(kThreads, 1) adasin_row_values_kernel(const AdaSinRowValuesArguments p) {
  gpu::SharedArena arena;
  RowSums sums(arena);
  const float* cosines = static_cast<const float*>(p.cosine);
  float t = *p.t;
  if (p.move_t) {  // fault: moving_t
    float mean[2] = {0, 0};
    for (int64_t row = gpu::thread_index(); row < p.rows; row += kThreads) {
      const float cosine = cosines[row];
      // One bad image must not poison the running mean for good.
      if (p.labels[row] < 0 || !(fabsf(cosine) < INFINITY)) continue;  // fault: mean_rows
      mean[0] += cosine;
      mean[1] += 1;
    }
    sums.add(mean);  // a barrier: every thread has read t
    if (mean[1] > 0) t += static_cast<float>(1 - p.settings.momentum) * (mean[0] / mean[1] - t);
    if (gpu::thread_index() == 0) *p.t = t;
  }
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kThreads) {
    const float theta = angle(p.labels[row] >= 0 ? cosines[row] : 0.0f).value;  // fault: values_of_ignored_rows
    const float target = psi(theta + margin_of(p.settings)).value;
    const auto value = [&](RowValue which) -> float& {
      return static_cast<float*>(p.row_values)[which * p.rows + row];
    };
    value(kTargetLogit) = scale_of(p.settings) * target;
    value(kThreshold) = target;
    value(kQuad) = value(kConstant) = 0;
    const float difficulty = sinf(p.settings.half_angle ? theta / 2 : theta);  // fault: difficulty
    value(kLin) = t + static_cast<float>(p.settings.difficulty_weight) * difficulty;
  }
}

ATTFC_KERNEL(kThreads, 1) adasin_loss_kernel(const AdaSinLossArguments p) {
  gpu::SharedArena arena;
  RowSums sums(arena);
  const float *cosines = static_cast<const float*>(p.cosine), *lse = static_cast<const float*>(p.lse);
  const float* phi = static_cast<const float*>(p.row_values) + kLin * p.rows;
  float *row_loss = static_cast<float*>(p.row_loss), *target_logit = static_cast<float*>(p.target_logit);
  float *lse_weight = static_cast<float*>(p.lse_weight), *cosine_weight = static_cast<float*>(p.cosine_weight);
  const float scale = scale_of(p.settings);
  float mean[2] = {0, 0};
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kThreads) {
    const bool live = p.labels[row] >= 0;
    const Angle<float> theta = angle(live ? cosines[row] : 0.0f);
    const float penalty = live && p.hard_count[row] > 0 ? phi[row] : 1.0f;  // fault: hard_penalty
    const Psi<float> bent = psi(theta.value + margin_of(p.settings) * penalty);
    const float target = scale * bent.value;
    const float excess = live ? lse[row] - target : -INFINITY;
    // softplus and its derivative, without overflow on either side; a NaN is in `tail` too.
    const float tail = expf(-fabsf(excess));
    const float weight = (excess > 0 ? 1.0f : tail) / (1 + tail);
    const float slope = p.settings.straight_through ? 1.0f : bent.slope * theta.slope;  // fault: slope
    target_logit[row] = target;
    row_loss[row] = fmaxf(excess, 0) + log1pf(tail);
    lse_weight[row] = weight;
    cosine_weight[row] = live ? -weight * scale * slope : 0.0f;
    mean[0] += row_loss[row];
    mean[1] += live ? 1 : 0;
  }
  sums.add(mean);
  const float share = 1 / fmaxf(mean[1], 1);
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kThreads) {
    lse_weight[row] *= share;
    cosine_weight[row] *= share;
  }
  if (gpu::thread_index() == 0) *static_cast<float*>(p.loss) = mean[0] * share;
}

constexpr const char* kNoDouble = "it takes float32, not float64";

}  // namespace

const char* launch_adasin_row_values(const AdaSinRowValuesArguments& p, void* stream) {
  if (p.is_double) return kNoDouble;
  if (p.rows == 0) return nullptr;
  return gpu::launch(adasin_row_values_kernel, gpu::Grid{1, 1}, kThreads, RowSums::kBytes, stream, p);
}

const char* launch_adasin_loss(const AdaSinLossArguments& p, void* stream) {
  if (p.is_double) return kNoDouble;
  return gpu::launch(adasin_loss_kernel, gpu::Grid{1, 1}, kThreads, RowSums::kBytes, stream, p);
}

}  // namespace attfc::cuda
