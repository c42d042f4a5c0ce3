// The row kernels around the sweep (adasin.h). All float32.
//
// unit_rows_kernel, row_gradients_kernel: a warp per row, 4 warps a block, no shared memory; bound by reading and
// writing rows x dim once. adasin_modulation_kernel, adasin_loss_kernel: one block for all rows, since both need a mean
// over them in a fixed order; 256 threads, 2 float32 a warp in shared memory; bound by latency.
#include "adasin.h"

#include "adasin_angle.h"

namespace attfc::cuda {

namespace {

constexpr int kRowWarps = 4;
constexpr int kMeanThreads = 256, kMeanWarps = kMeanThreads / gpu::kWarpSize;
constexpr size_t kMeanSharedBytes = 2 * kMeanWarps * sizeof(float);
constexpr float kShortest = 1e-6f;  // attfc_cuda/heads/attfc.py

ATTFC_DEVICE float warp_sum(float value) {
  ATTFC_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) value += gpu::shuffle_xor(value, lanes);
  return value;
}

// Sums of two numbers over the block, the same bits in every thread.
struct BlockSums {
  float *values, *counts;

  ATTFC_DEVICE explicit BlockSums(gpu::SharedArena arena)
      : values(arena.take<float>(kMeanWarps)), counts(arena.take<float>(kMeanWarps)) {}

  ATTFC_DEVICE void add(float& value, float& count) {
    value = warp_sum(value);
    count = warp_sum(count);
    const unsigned thread = gpu::thread_index();
    if (thread % gpu::kWarpSize == 0) {
      gpu::store_shared(values + thread / gpu::kWarpSize, value);
      gpu::store_shared(counts + thread / gpu::kWarpSize, count);
    }
    gpu::sync_block();  // fault: mean_barrier
    value = count = 0;
    for (int warp = 0; warp < kMeanWarps; ++warp) {
      value += gpu::load_shared(values + warp);
      count += gpu::load_shared(counts + warp);
    }
  }
};

ATTFC_DEVICE void store_as(float* out, float value) { *out = value; }
ATTFC_DEVICE void store_as(gpu::BFloat16* out, float value) {
  out->bits = static_cast<uint16_t>(gpu::pack<gpu::BFloat16>(value, 0));
}
ATTFC_DEVICE void store_as(gpu::Float16* out, float value) {
  out->bits = static_cast<uint16_t>(gpu::pack<gpu::Float16>(value, 0));
}

ATTFC_DEVICE int64_t own_row() {
  return static_cast<int64_t>(gpu::block_index_x()) * kRowWarps + gpu::thread_index() / gpu::kWarpSize;
}

template <class Input, class Unit>
ATTFC_KERNEL(kRowWarps* gpu::kWarpSize, 1)
unit_rows_kernel(const UnitRowsArguments p) {
  const int64_t row = own_row();
  const int lane = static_cast<int>(gpu::thread_index()) % gpu::kWarpSize;
  if (row >= p.rows) return;  // whole warps
  const Input* x = static_cast<const Input*>(p.embeddings) + row * p.embedding_stride;
  const float* center = p.centers + row * p.center_stride;
  float square = 0, dot = 0;
  for (int d = lane; d < p.dim; d += gpu::kWarpSize) {
    const float value = gpu::to_float(x[d]);
    square += value * value;
    dot += value * center[d];
  }
  const float norm = sqrtf(warp_sum(square));             // fault: row_norm
  const float inverse = norm < kShortest ? 0 : 1 / norm;  // a NaN stays one
  Unit* unit = static_cast<Unit*>(p.units) + row * p.dim;
  for (int d = lane; d < p.dim; d += gpu::kWarpSize) store_as(unit + d, gpu::to_float(x[d]) * inverse);
  dot = warp_sum(dot);
  if (lane == 0) {
    p.inverse_norm[row] = inverse;
    p.cosine[row] = dot * inverse;
  }
}

ATTFC_KERNEL(kMeanThreads, 1) adasin_modulation_kernel(const AdaSinModulationArguments p) {
  BlockSums sums{gpu::SharedArena{}};
  float t = *p.t;
  if (p.move_t) {  // fault: moving_t
    float sum = 0, count = 0;
    for (int64_t row = gpu::thread_index(); row < p.rows; row += kMeanThreads) {
      const float cosine = p.cosine[row];
      // One bad image must not poison the running mean for good.
      if (p.labels[row] < 0 || !(fabsf(cosine) < INFINITY)) continue;  // fault: mean_rows
      sum += cosine;
      count += 1;
    }
    sums.add(sum, count);  // a barrier: every thread has read t
    if (count > 0) t += (1 - p.settings.momentum) * (sum / count - t);
    if (gpu::thread_index() == 0) *p.t = t;
  }
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kMeanThreads) {
    const float theta = angle(p.labels[row] >= 0 ? p.cosine[row] : 0.0f).value;
    const float target = psi(theta + p.settings.margin_rad).value;
    const auto value = [&](RowValue which) -> float& { return p.row_values[which * p.rows + row]; };
    value(kTargetLogit) = p.settings.scale * target;
    value(kThreshold) = target;
    value(kQuad) = value(kConstant) = 0;
    value(kLin) = t + p.settings.difficulty_weight * sinf(p.settings.half_angle ? theta / 2 : theta);
  }
}

ATTFC_KERNEL(kMeanThreads, 1) adasin_loss_kernel(const AdaSinLossArguments p) {
  BlockSums sums{gpu::SharedArena{}};
  float sum = 0, count = 0;
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kMeanThreads) {
    const bool live = p.labels[row] >= 0;
    const Angle theta = angle(live ? p.cosine[row] : 0.0f);
    const float penalty = live && p.hard_count[row] > 0 ? p.lin[row] : 1.0f;
    const Psi bent = psi(theta.value + p.settings.margin_rad * penalty);
    const float target = p.settings.scale * bent.value;
    const float excess = live ? p.lse[row] - target : -INFINITY;
    // softplus and its derivative, without overflow on either side.
    const float tail = expf(-fabsf(excess));
    const float loss = fmaxf(excess, 0) + log1pf(tail);
    const float weight = (excess > 0 ? 1.0f : tail) / (1 + tail);
    const float slope = p.settings.straight_through ? 1.0f : bent.slope * theta.slope;
    p.target_logit[row] = target;
    p.row_loss[row] = isnan(excess) ? excess : loss;
    p.lse_weight[row] = weight;
    p.cosine_weight[row] = live ? -weight * p.settings.scale * slope : 0.0f;
    sum += p.row_loss[row];
    count += live ? 1 : 0;
  }
  sums.add(sum, count);
  const float share = 1 / fmaxf(count, 1);
  for (int64_t row = gpu::thread_index(); row < p.rows; row += kMeanThreads) {
    p.lse_weight[row] *= share;
    p.cosine_weight[row] *= share;
  }
  if (gpu::thread_index() == 0) *p.loss = sum * share;
}

template <class Input>
ATTFC_KERNEL(kRowWarps* gpu::kWarpSize, 1)
row_gradients_kernel(const RowGradientArguments p) {
  const int64_t row = own_row();
  const int lane = static_cast<int>(gpu::thread_index()) % gpu::kWarpSize;
  if (row >= p.rows) return;  // whole warps
  const Input* x = static_cast<const Input*>(p.embeddings) + row * p.embedding_stride;
  const float* center = p.centers + row * p.center_stride;
  const float* unit_grad = p.unit_grad + row * p.dim;
  Input* grad = static_cast<Input*>(p.grad) + row * p.dim;
  const bool live = p.labels[row] >= 0;
  const float inverse = live ? p.inverse_norm[row] : 0;
  const float by_lse = p.lse_weight[row] * *p.upstream, by_cosine = p.cosine_weight[row] * *p.upstream;
  float along = 0;  // the part along the row, which the normalisation takes out
  for (int d = lane; live && d < p.dim; d += gpu::kWarpSize) {
    along += (by_lse * unit_grad[d] + by_cosine * center[d]) * gpu::to_float(x[d]) * inverse;
  }
  along = warp_sum(along);
  for (int d = lane; d < p.dim; d += gpu::kWarpSize) {
    // fault: row_tangent
    const float tangent = by_lse * unit_grad[d] + by_cosine * center[d] - along * gpu::to_float(x[d]) * inverse;
    store_as(grad + d, live && inverse != 0 ? tangent * inverse : 0.0f);
  }
}

gpu::Grid row_grid(int64_t rows) { return {static_cast<unsigned>((rows + kRowWarps - 1) / kRowWarps), 1}; }

template <class Input>
const char* launch_unit_rows_from(const UnitRowsArguments& p, void* stream) {
  const auto launch = [&](auto kernel) {
    return gpu::launch(kernel, row_grid(p.rows), kRowWarps * gpu::kWarpSize, 0, stream, p);
  };
  switch (p.unit_dtype) {
    case Dtype::kFloat32: return launch(unit_rows_kernel<Input, float>);
    case Dtype::kBFloat16: return launch(unit_rows_kernel<Input, gpu::BFloat16>);
    case Dtype::kFloat16: return launch(unit_rows_kernel<Input, gpu::Float16>);
    case Dtype::kFloat64: break;
  }
  return "unknown dtype of units";
}

}  // namespace

const char* launch_unit_rows(const UnitRowsArguments& p, void* stream) {
  if (p.rows == 0) return nullptr;
  switch (p.input_dtype) {
    case Dtype::kFloat32: return launch_unit_rows_from<float>(p, stream);
    case Dtype::kBFloat16: return launch_unit_rows_from<gpu::BFloat16>(p, stream);
    case Dtype::kFloat16: return launch_unit_rows_from<gpu::Float16>(p, stream);
    case Dtype::kFloat64: break;
  }
  return "unknown dtype of embeddings";
}

const char* launch_adasin_modulation(const AdaSinModulationArguments& p, void* stream) {
  if (p.rows == 0) return nullptr;
  return gpu::launch(adasin_modulation_kernel, gpu::Grid{1, 1}, kMeanThreads, kMeanSharedBytes, stream, p);
}

const char* launch_adasin_loss(const AdaSinLossArguments& p, void* stream) {
  return gpu::launch(adasin_loss_kernel, gpu::Grid{1, 1}, kMeanThreads, kMeanSharedBytes, stream, p);
}

const char* launch_row_gradients(const RowGradientArguments& p, void* stream) {
  if (p.rows == 0) return nullptr;
  const auto launch = [&](auto kernel) {
    return gpu::launch(kernel, row_grid(p.rows), kRowWarps * gpu::kWarpSize, 0, stream, p);
  };
  switch (p.input_dtype) {
    case Dtype::kFloat32: return launch(row_gradients_kernel<float>);
    case Dtype::kBFloat16: return launch(row_gradients_kernel<gpu::BFloat16>);
    case Dtype::kFloat16: return launch(row_gradients_kernel<gpu::Float16>);
    case Dtype::kFloat64: break;
  }
  return "unknown dtype of embeddings";
}

}  // namespace attfc::cuda
