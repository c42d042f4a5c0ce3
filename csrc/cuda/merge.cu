// The merge kernel: the splits of a sweep become one result per row, always in the order of the splits.
//
// Grid: one block per row. Threads: dim / 4, each four columns of the gradient. No shared memory; float32. Bound by
// reading the partial gradients: 4 splits rows dim bytes, once.
#include "merge.h"

namespace attfc::cuda {

namespace {

ATTFC_DEVICE PartialLse<float> read_partial(const PartialSums& partial, int64_t at) {
  return {partial.reference[at],    partial.sum[at],     partial.moment_quad[at], partial.moment_lin[at],
          partial.moment_const[at], partial.omitted[at], partial.max_cosine[at],  partial.hard_count[at]};
}

ATTFC_KERNEL(128, 1) merge_kernel(const MergeParameters p) {
  const int64_t row = gpu::block_index_x();
  const int column = static_cast<int>(gpu::thread_index()) * 4;
  PartialLse<float> total = empty_partial(-INFINITY);
  gpu::Float4 gradient = {0, 0, 0, 0};
  for (int split = 0; split < p.splits; ++split) {  // fault: merged_splits
    const int64_t at = split * p.rows + row;
    float keep, add;
    merge(total, read_partial(p.partial, at), keep, add);
    if (p.unit_grad != nullptr) {
      const gpu::Float4 more = *reinterpret_cast<const gpu::Float4*>(p.partial.gradient + at * p.dim + column);
      // fault: merged_scale
      gradient = {gradient.x * keep + more.x * add, gradient.y * keep + more.y * add, gradient.z * keep + more.z * add,
                  gradient.w * keep + more.w * add};
    }
  }

  // Nothing valid, or so far below the target that exp() is 0: lse -inf, gradient 0. Divided first: scale / sum
  // overflows.
  const bool empty = total.sum == 0;
  const float sum = empty ? 1.0f : total.sum;
  if (p.unit_grad != nullptr) {
    *reinterpret_cast<gpu::Float4*>(p.unit_grad + row * p.dim + column) = {
        gradient.x / sum * p.scale, gradient.y / sum * p.scale, gradient.z / sum * p.scale, gradient.w / sum * p.scale};
  }
  if (gpu::thread_index() != 0) return;
  const float target_mass = p.reference != nullptr ? expf(p.reference[row] - total.reference) : 0;
  p.lse[row] = empty ? -INFINITY : total.reference + logf(total.sum);
  p.hard_count[row] = total.hard_count;
  p.max_cosine[row] = total.max_cosine;
  p.omitted_mass[row] = total.omitted > 0 ? total.omitted / (target_mass + total.sum) : 0;
  p.moments[row * 3] = total.moment_quad / sum * p.scale;
  p.moments[row * 3 + 1] = total.moment_lin / sum * p.scale;
  p.moments[row * 3 + 2] = total.moment_const / sum * p.scale;
}

}  // namespace

const char* launch_merge(const MergeParameters& parameters, void* stream) {
  const unsigned threads = parameters.unit_grad != nullptr ? static_cast<unsigned>(parameters.dim) / 4 : gpu::kWarpSize;
  return gpu::launch(merge_kernel, gpu::Grid{static_cast<unsigned>(parameters.rows), 1}, threads, 0, stream,
                     parameters);
}

}  // namespace attfc::cuda
