// The merge kernel: the splits of a sweep become one result per row, in an order that depends on their number alone.
//
// Grid: one block per row. Threads: dim / 4, each four columns of the gradient; one warp without it. The first warp
// reads the splits' numbers, a lane every 32nd split, and adds them up by halves; then every thread adds its columns,
// with no load waiting for another. Shared memory: a factor for each split, and the row's sum. float32. Bound by
// reading the partial gradients: 4 splits rows dim bytes, once.
#include "merge.h"

#include "partial_lanes.h"

namespace attfc::cuda {

namespace {

// All splits of a row, in lane 0 of a warp; `factors` [splits]: by what to scale each split's gradient.
ATTFC_DEVICE PartialLse<float> merge_splits(const MergeParameters& p, int64_t row, int lane, float* factors) {
  PartialLse<float> total = empty_partial(p.final_lse != nullptr ? p.final_lse[row] : -INFINITY);
  float keep, add;
  for (int split = lane; split < p.splits && p.final_lse == nullptr; split += gpu::kWarpSize) {
    merge(total, read_partial(p.partial, split * p.num_rows + row), keep, add);
  }
  ATTFC_UNROLL
  // fault: merged_lanes
  for (int lanes = gpu::kWarpSize / 2; lanes > 0; lanes /= 2) merge(total, of_other_lane(total, lanes), keep, add);
  for (int split = lane; split < p.splits; split += gpu::kWarpSize) {
    // fault: merged_factor
    const float factor = move_factor(p.partial.reference[split * p.num_rows + row], total.reference);
    gpu::store_shared(factors + split, factor);
  }
  return total;
}

// Nothing valid, or so far below the target that exp() is 0: lse -inf, gradient 0. Gradients are divided by the sum
// before they are scaled: scale / sum overflows.
ATTFC_DEVICE float divisor(float sum) { return sum == 0 ? 1.0f : sum; }

ATTFC_DEVICE void write_numbers(const MergeParameters& p, int64_t row, const PartialLse<float>& total) {
  const float target_mass = p.target_logit != nullptr ? expf(p.target_logit[row] - total.reference) : 0;
  const float sum = divisor(total.sum);
  p.lse[row] = total.sum == 0 ? -INFINITY : total.reference + logf(total.sum);
  p.hard_count[row] = total.hard_count;
  p.max_cosine[row] = total.max_cosine;
  p.omitted_mass[row] = total.omitted > 0 ? total.omitted / (target_mass + total.sum) : 0;
  p.moments[row * 3] = total.moment_quad / sum * p.scale;
  p.moments[row * 3 + 1] = total.moment_lin / sum * p.scale;
  p.moments[row * 3 + 2] = total.moment_const / sum * p.scale;
}

ATTFC_KERNEL(128, 1) merge_kernel(const MergeParameters p) {
  const int64_t row = gpu::block_index_x();
  const int thread = static_cast<int>(gpu::thread_index());
  float* factors = gpu::SharedArena{}.take<float>(p.splits + 1);  // the last: the row's sum
  if (thread < gpu::kWarpSize) {
    const PartialLse<float> total = merge_splits(p, row, thread, factors);
    if (thread == 0) {
      gpu::store_shared(factors + p.splits, p.final_lse != nullptr ? 1.0f : total.sum);
      if (p.final_lse == nullptr) write_numbers(p, row, total);
    }
  }
  if (p.unit_grad == nullptr) return;
  gpu::sync_block();  // fault: merge_barrier
  gpu::Float4 gradient = {0, 0, 0, 0};
  const float* partial = p.partial.gradient + row * p.dim + thread * 4;
  ATTFC_UNROLL_BY_4
  for (int split = 0; split < p.splits; ++split) {  // fault: merged_splits
    const gpu::Float4 more = *reinterpret_cast<const gpu::Float4*>(partial + split * p.num_rows * p.dim);
    const float factor = gpu::load_shared(factors + split);
    gradient = {gradient.x + more.x * factor, gradient.y + more.y * factor, gradient.z + more.z * factor,
                gradient.w + more.w * factor};
  }
  const float sum = divisor(gpu::load_shared(factors + p.splits));
  *reinterpret_cast<gpu::Float4*>(p.unit_grad + row * p.dim + thread * 4) = {
      gradient.x / sum * p.scale, gradient.y / sum * p.scale, gradient.z / sum * p.scale, gradient.w / sum * p.scale};
}

}  // namespace

const char* launch_merge(const MergeParameters& parameters, void* stream) {
  const unsigned threads = parameters.unit_grad != nullptr ? static_cast<unsigned>(parameters.dim) / 4 : gpu::kWarpSize;
  const size_t shared_bytes = sizeof(float) * static_cast<size_t>(parameters.splits + 1);
  return gpu::launch(merge_kernel, gpu::Grid{static_cast<unsigned>(parameters.num_rows), 1}, threads, shared_bytes,
                     stream, parameters);
}

}  // namespace attfc::cuda
