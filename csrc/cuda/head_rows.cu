// The row kernels (head_rows.h): a block a row, four elements a thread at D 512. A thread owns the elements d = thread
// + i 128 in every pass, so that between passes only sums cross threads; the class centre grows in its output. Shared
// memory: the sums of 4 warps. Bound by latency: a pass waits for its loads once, then for a sum.
#include "head_rows.h"

#include "../class_code.h"
#include "block_sums.h"
#include "element.h"

namespace attfc::cuda {

namespace {

constexpr int kThreads = 128;
// |v| below which F.normalize divides by this instead: a gallery of zeros gives a centre of zeros.
constexpr float kNormalizeEps = 1e-12f;

using RowSums = BlockSums<float, 2, kThreads>;

// A vector of the row, in any dtype.
struct Vector {
  Dtype dtype;
  const void* data;
  int64_t first;

  ATTFC_DEVICE float operator[](int d) const { return load_element(dtype, data, first + d); }
};

// visit(d) for each element of this thread.
template <class Visit>
ATTFC_DEVICE void for_own(int dim, Visit visit) {
  ATTFC_UNROLL_BY_4
  for (int d = static_cast<int>(gpu::thread_index()); d < dim; d += kThreads) visit(d);
}

// Sum of term(d) over the row, and of other(d).
template <class Term, class Other>
ATTFC_DEVICE void sum_over_row(RowSums& sums, int dim, float (&result)[2], Term term, Other other) {
  result[0] = result[1] = 0;
  for_own(dim, [&](int d) {
    result[0] += term(d);
    result[1] += other(d);
  });
  sums.add(result);
}
template <class Term>
ATTFC_DEVICE float sum_over_row(RowSums& sums, int dim, Term term) {
  float result[2];
  sum_over_row(sums, dim, result, term, [](int) { return 0.0f; });
  return result[0];
}

// 1 / |v|, 0 for one too short to have a direction. A NaN stays one.
ATTFC_DEVICE float inverse_norm(float square) {
  const float norm = sqrtf(square);
  return norm < static_cast<float>(kShortestRow) ? 0.0f : 1 / norm;  // fault: shortest_row
}
ATTFC_DEVICE float inverse_norm_or_eps(float square) {
  const float norm = sqrtf(square);
  return 1 / (norm < kNormalizeEps ? kNormalizeEps : norm);
}

// A row's class centre: `factor` times what stands in its output.
struct Center {
  float* values;
  float factor;

  ATTFC_DEVICE float operator[](int d) const { return values[d] * factor; }
};

// The gallery's mean by attention, normalised. The softmax runs along: what is summed is relative to the largest logit
// so far.
ATTFC_DEVICE void attend(const HeadRowsArguments& p, RowSums& sums, int64_t row, const Vector& x, float inverse,
                         Center& center) {
  float largest = -INFINITY;
  for (int64_t k = 0; k < p.gallery_size; ++k) {
    const Vector gallery{p.gallery_dtype, p.gallery, (row * p.gallery_size + k) * p.dim};
    float of_gallery[2];
    sum_over_row(
        sums, p.dim, of_gallery, [&](int d) { return gallery[d] * gallery[d]; },
        [&](int d) { return x[d] * gallery[d]; });
    const float cosine = of_gallery[1] * inverse * inverse_norm_or_eps(of_gallery[0]);
    const float logit = cosine / static_cast<float>(p.temperature);  // fault: temperature
    const float reference = k == 0 || logit > largest ? logit : largest;
    const float keep = k == 0 ? 0.0f : expf(largest - reference), weight = expf(logit - reference);
    for_own(p.dim, [&](int d) {
      const float before = k == 0 ? 0.0f : center.values[d] * keep;  // fault: softmax_moves
      center.values[d] = before + weight * gallery[d];
    });
    largest = reference;
  }
  center.factor =
      inverse_norm_or_eps(sum_over_row(sums, p.dim, [&](int d) { return center.values[d] * center.values[d]; }));
}

// g <- unit(g + what more(d) adds to it).
template <class More>
ATTFC_DEVICE void move_center(RowSums& sums, int dim, Center& center, More more) {
  const float square = sum_over_row(sums, dim, [&](int d) {
    const float value = center[d] + more(d);
    center.values[d] = value;
    return value * value;
  });
  center.factor = inverse_norm(square);
}

ATTFC_DEVICE void add_code(const HeadRowsArguments& p, RowSums& sums, int64_t label, Center& center) {
  const int64_t number = p.code_of_class != nullptr ? p.code_of_class[label] : label;  // fault: code_of_class
  const float size = static_cast<float>(p.class_code) / sqrtf(static_cast<float>(p.dim));
  move_center(sums, p.dim, center, [&](int d) { return size * static_cast<float>(class_code_sign(number, p.dim, d)); });
}

ATTFC_DEVICE void mix_stored(const HeadRowsArguments& p, RowSums& sums, int64_t label, Center& center) {
  const int64_t slot = p.slot_of_class[label];
  if (slot < 0 || p.slot_labels[slot] != label) return;  // fault: evicted_class
  const Vector stored{p.container_dtype, p.stored_centers, slot * p.stored_stride};
  const float share = static_cast<float>(p.center_memory);
  move_center(sums, p.dim, center, [&](int d) { return share * (stored[d] - center[d]); });
}

struct RowOutputs {
  const HeadRowsArguments& p;
  int64_t row;      // of embeddings; below 0: an extra row
  int64_t out_row;  // of new_centers

  ATTFC_DEVICE void unit(int d, float value) const {
    if (row >= 0) store_element(p.container_dtype, p.units, row * p.dim + d, value);
  }
  ATTFC_DEVICE void numbers(float inverse, float cosine, int64_t label, int64_t new_label) const {
    if (gpu::thread_index() != 0) return;
    static_cast<int64_t*>(p.new_labels)[out_row] = new_label;
    if (row < 0) return;
    static_cast<float*>(p.inverse_norm)[row] = inverse;
    static_cast<float*>(p.cosine)[row] = cosine;
    p.row_labels[row] = label;
  }
};

ATTFC_KERNEL(kThreads, 8) head_rows_kernel(const HeadRowsArguments p) {
  gpu::SharedArena arena;
  RowSums sums(arena);
  const int64_t out_row = gpu::block_index_x(), row = out_row - p.extra_rows;
  const RowOutputs outputs{p, row, out_row};
  const int64_t label = row < 0 ? p.extra_labels[out_row] : p.labels[row];
  Center center{static_cast<float*>(p.new_centers) + out_row * p.dim, 1};
  if (label < 0 || label >= p.num_classes) {  // fault: row_counts
    for_own(p.dim, [&](int d) {
      center.values[d] = 0;
      outputs.unit(d, 0);
    });
    outputs.numbers(0, 0, -1, -1);
    return;
  }
  const Vector x = row < 0 ? Vector{p.extra_dtype, p.extra_centers, out_row * p.dim}
                           : Vector{p.embedding_dtype, p.embeddings, row * p.embedding_stride};
  const float inverse = inverse_norm(sum_over_row(sums, p.dim, [&](int d) { return x[d] * x[d]; }));
  if (row < 0) {
    for_own(p.dim, [&](int d) { center.values[d] = x[d]; });
    center.factor = inverse;
  } else {
    attend(p, sums, row, x, inverse, center);
  }
  if (p.class_code > 0) add_code(p, sums, label, center);
  if (p.center_memory > 0) mix_stored(p, sums, label, center);
  float result[2];  // cosine; how many elements of the centre are not finite
  sum_over_row(
      sums, p.dim, result,
      [&](int d) {
        const float own = center[d], unit = x[d] * inverse;
        outputs.unit(d, unit);
        return unit * own;
      },
      [&](int d) {
        const float own = center[d];
        center.values[d] = own;
        return fabsf(rounded_to(p.container_dtype, own)) < INFINITY ? 0.0f : 1.0f;
      });
  outputs.numbers(inverse, result[0], label, result[1] > 0 ? -1 : label);  // fault: finite_center
}

ATTFC_KERNEL(kThreads, 8) row_gradients_kernel(const RowGradientArguments p) {
  gpu::SharedArena arena;
  RowSums sums(arena);
  const int64_t row = gpu::block_index_x(), first = row * p.dim;
  const float inverse = p.labels[row] >= 0 ? static_cast<const float*>(p.inverse_norm)[row] : 0.0f;
  if (inverse == 0) {
    for_own(p.dim, [&](int d) { store_element(p.embedding_dtype, p.grad, first + d, 0); });
    return;
  }
  const Vector x{p.embedding_dtype, p.embeddings, row * p.embedding_stride};
  const float* center = static_cast<const float*>(p.centers) + first;
  const float* unit_grad = static_cast<const float*>(p.unit_grad) + first;
  const float upstream = *static_cast<const float*>(p.upstream);
  const float by_lse = static_cast<const float*>(p.lse_weight)[row] * upstream;  // fault: upstream
  const float by_cosine = static_cast<const float*>(p.cosine_weight)[row] * upstream;
  const auto by_unit = [&](int d) { return by_lse * unit_grad[d] + by_cosine * center[d]; };
  // The part along the row, which the normalisation takes out.
  const float along = sum_over_row(sums, p.dim, [&](int d) { return by_unit(d) * (x[d] * inverse); });
  for_own(p.dim, [&](int d) {
    const float tangent = by_unit(d) - along * (x[d] * inverse);  // fault: row_tangent
    store_element(p.embedding_dtype, p.grad, first + d, tangent * inverse);
  });
}

constexpr const char* kNoDouble = "it takes float32 and 16-bit floats, not float64";
constexpr const char* kManyRows = "it takes at most 2^31 - 1 rows";

}  // namespace

const char* why_not(const HeadRowsArguments& p) {
  for (const Dtype dtype : {p.embedding_dtype, p.gallery_dtype, p.extra_dtype, p.container_dtype}) {
    if (dtype == Dtype::kFloat64) return kNoDouble;
  }
  return p.rows + p.extra_rows > 2147483647 ? kManyRows : nullptr;
}

const char* why_not(const RowGradientArguments& p) {
  if (p.embedding_dtype == Dtype::kFloat64) return kNoDouble;
  return p.rows > 2147483647 ? kManyRows : nullptr;
}

const char* launch_head_rows(const HeadRowsArguments& p, void* stream) {
  if (const char* reason = why_not(p)) return reason;
  if (p.rows + p.extra_rows == 0) return nullptr;
  const gpu::Grid grid{static_cast<unsigned>(p.rows + p.extra_rows), 1};
  return gpu::launch(head_rows_kernel, grid, kThreads, RowSums::kBytes, stream, p);
}

const char* launch_row_gradients(const RowGradientArguments& p, void* stream) {
  if (const char* reason = why_not(p)) return reason;
  if (p.rows == 0) return nullptr;
  const gpu::Grid grid{static_cast<unsigned>(p.rows), 1};
  return gpu::launch(row_gradients_kernel, grid, kThreads, RowSums::kBytes, stream, p);
}

}  // namespace attfc::cuda
