// The rows of a head step before and after the sweep (../head_step.h), a row at a time in the cache: each input is read
// once, each output written once. Included inside a kernels_<isa>.cpp, after operands.h.

// Rows of one task, and its buffers: three rows of Real, padded with zeros to whole vectors.
constexpr int64_t kRowsPerTask = 8;
constexpr int kRowBuffers = 3;

template <class Real>
int padded_dim(int dim) {
  constexpr int kStep = 2 * Simd<Real>::kLanes;
  return (dim + kStep - 1) / kStep * kStep;
}

inline int64_t row_tasks(int64_t rows) { return (rows + kRowsPerTask - 1) / kRowsPerTask; }

inline size_t row_task_bytes(bool is_double, int dim) {
  const size_t row = is_double ? padded_dim<double>(dim) * sizeof(double) : padded_dim<float>(dim) * sizeof(float);
  return Workspace::aligned(kRowBuffers * row);
}

template <class Real>
struct RowBuffers {
  int dim, padded;
  Real *a, *b, *c;

  RowBuffers(int dim_, void* workspace, int64_t task) : dim(dim_), padded(padded_dim<Real>(dim_)) {
    a = reinterpret_cast<Real*>(static_cast<char*>(workspace) + task * row_task_bytes(sizeof(Real) == 8, dim));
    b = a + padded;
    c = b + padded;
    for (Real* row : {a, b, c}) std::fill(row + dim, row + padded, Real(0));
  }
};

template <class Input, class Real>
void read_row(const Input* from, int dim, Real* to) {
  for (int d = 0; d < dim; ++d) to[d] = static_cast<Real>(to_real(from[d]));
}

template <class Real>
void read_row(Dtype dtype, const void* matrix, int64_t row_start, int dim, Real* to) {
  with_input(dtype, [&](auto input) { read_row(static_cast<const decltype(input)*>(matrix) + row_start, dim, to); });
}

template <class Real>
void write_row(Dtype dtype, const Real* from, int dim, void* matrix, int64_t row_start) {
  with_input(dtype, [&](auto input) {
    using Output = decltype(input);
    Output* to = static_cast<Output*>(matrix) + row_start;
    if constexpr (std::is_same_v<Output, double> == std::is_same_v<Real, double>) {
      for (int d = 0; d < dim; ++d) to[d] = from_real<Output>(from[d]);
    }
  });
}

template <class Real>
Real dot(const Real* a, const Real* b, int padded) {
  using Vector = typename Simd<Real>::Vector;
  constexpr int kLanes = Simd<Real>::kLanes;
  Vector even{}, odd{};
  for (int d = 0; d < padded; d += 2 * kLanes) {
    even += load<Vector>(a + d) * load<Vector>(b + d);
    odd += load<Vector>(a + d + kLanes) * load<Vector>(b + d + kLanes);
  }
  even += odd;
  Real sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += even[lane];
  return sum;
}

template <class Real>
void scale_row(Real* row, Real factor, int padded) {
  for (int d = 0; d < padded; ++d) row[d] *= factor;
}

// 1 / |row|; 0 below `shortest`. A NaN fails the comparison and stays.
template <class Real>
Real inverse_length(const Real* row, int padded, Real shortest) {
  const Real length = std::sqrt(dot(row, row, padded));
  return length < shortest ? Real(0) : 1 / length;
}

template <class Real>
void make_unit(Real* row, int padded) {
  scale_row(row, inverse_length(row, padded, Real(kShortestRow)), padded);
}

// g = (sum_k a_k G_k) / |...| into `center`, in one pass: weights are kept relative to the largest logit so far.
template <class Real>
void attend(const HeadRowsArguments& p, int64_t row, const Real* unit, Real* center, Real* image, int padded) {
  constexpr Real kTiny = Real(1e-12);  // F.normalize's
  std::fill(center, center + padded, Real(0));
  Real reference = -std::numeric_limits<Real>::infinity(), mass = 0;
  for (int64_t k = 0; k < p.gallery_size; ++k) {
    read_row(p.gallery_dtype, p.gallery, (row * p.gallery_size + k) * p.dim, p.dim, image);
    const Real length = std::sqrt(dot(image, image, padded));
    const Real cosine = dot(unit, image, padded) / (length < kTiny ? kTiny : length);
    const Real logit = cosine / static_cast<Real>(p.temperature);
    const Real largest = logit > reference ? logit : reference;
    const Real keep = reference == largest ? Real(1) : std::exp(reference - largest);
    const Real weight = std::exp(logit - largest);
    for (int d = 0; d < padded; ++d) center[d] = keep * center[d] + weight * image[d];
    mass = keep * mass + weight;
    reference = largest;
  }
  const Real length = std::sqrt(dot(center, center, padded)) / mass;
  scale_row(center, 1 / (mass * (length < kTiny ? kTiny : length)), padded);
}

template <class Real>
void add_class_code(const HeadRowsArguments& p, int64_t label, Real* center, int padded) {
  const int64_t number = p.code_of_class != nullptr ? p.code_of_class[label] : label;
  const Real entry = static_cast<Real>(p.class_code) / std::sqrt(static_cast<Real>(p.dim));
  for (int d = 0; d < p.dim; ++d) center[d] += entry * static_cast<Real>(class_code_sign(number, p.dim, d));
  make_unit(center, padded);
}

// Mixes in the container's own centre of the class, where it holds one. `stored` is a buffer.
template <class Real>
void remember(const HeadRowsArguments& p, int64_t label, Real* center, Real* stored, int padded) {
  const int64_t slot = p.slot_of_class[label];
  if (slot < 0 || p.slot_labels[slot] != label) return;  // an evicted class's entry is left standing
  read_row(p.container_dtype, p.stored_centers, slot * p.stored_stride, p.dim, stored);
  const Real share = static_cast<Real>(p.center_memory);
  for (int d = 0; d < padded; ++d) center[d] += share * (stored[d] - center[d]);
  make_unit(center, padded);
}

// What a row of new_centers becomes after its start, and its label in the container.
template <class Real>
void finish_center(const HeadRowsArguments& p, int64_t label, Real* center, Real* buffer, int padded, int64_t out) {
  if (p.class_code > 0) add_class_code(p, label, center, padded);
  if (p.center_memory > 0) remember(p, label, center, buffer, padded);
  const Real square = dot(center, center, padded);
  std::copy(center, center + p.dim, static_cast<Real*>(p.new_centers) + out * p.dim);
  p.new_labels[out] = square - square == 0 ? label : -1;
}

template <class Real>
void clear_center(const HeadRowsArguments& p, int64_t out) {
  std::fill_n(static_cast<Real*>(p.new_centers) + out * p.dim, p.dim, Real(0));
  p.new_labels[out] = -1;
}

inline bool row_counts(const HeadRowsArguments& p, int64_t label) { return label >= 0 && label < p.num_classes; }

template <class Real>
void head_row(const HeadRowsArguments& p, int64_t row, const RowBuffers<Real>& buffers) {
  const auto [dim, padded, unit, center, image] = buffers;
  Real &inverse = static_cast<Real*>(p.inverse_norm)[row], &cosine = static_cast<Real*>(p.cosine)[row];
  const int64_t label = p.labels[row], out = p.extra_rows + row;
  if (!row_counts(p, label)) {
    p.row_labels[row] = -1;
    inverse = cosine = 0;
    std::fill(unit, unit + dim, Real(0));
    write_row(p.container_dtype, unit, dim, p.units, row * dim);
    clear_center<Real>(p, out);
    return;
  }
  p.row_labels[row] = label;
  read_row(p.embedding_dtype, p.embeddings, row * p.embedding_stride, dim, unit);
  inverse = inverse_length(unit, padded, Real(kShortestRow));
  scale_row(unit, inverse, padded);
  write_row(p.container_dtype, unit, dim, p.units, row * dim);
  attend(p, row, unit, center, image, padded);
  finish_center(p, label, center, image, padded, out);
  cosine = dot(unit, center, padded);
}

template <class Real>
void extra_row(const HeadRowsArguments& p, int64_t row, const RowBuffers<Real>& buffers) {
  const int64_t label = p.extra_labels[row];
  if (!row_counts(p, label)) return clear_center<Real>(p, row);
  read_row(p.extra_dtype, p.extra_centers, row * p.dim, p.dim, buffers.b);
  make_unit(buffers.b, buffers.padded);
  finish_center(p, label, buffers.b, buffers.c, buffers.padded, row);
}

template <class Real>
void row_gradient(const RowGradientArguments& p, int64_t row, const RowBuffers<Real>& buffers) {
  const auto [dim, padded, unit, gradient, unused] = buffers;
  const auto number = [row](const void* values) { return static_cast<const Real*>(values)[row]; };
  const Real inverse = number(p.inverse_norm);
  if (p.labels[row] < 0 || inverse == 0) {
    std::fill(gradient, gradient + dim, Real(0));
  } else {
    const Real upstream = *static_cast<const Real*>(p.upstream);
    const Real by_lse = upstream * number(p.lse_weight), by_cosine = upstream * number(p.cosine_weight);
    const Real* unit_grad = static_cast<const Real*>(p.unit_grad) + row * dim;
    const Real* center = static_cast<const Real*>(p.centers) + row * dim;
    read_row(p.embedding_dtype, p.embeddings, row * p.embedding_stride, dim, unit);
    scale_row(unit, inverse, padded);
    for (int d = 0; d < dim; ++d) gradient[d] = by_lse * unit_grad[d] + by_cosine * center[d];
    const Real along = dot(gradient, unit, padded);
    for (int d = 0; d < dim; ++d) gradient[d] = (gradient[d] - along * unit[d]) * inverse;
  }
  write_row(p.embedding_dtype, gradient, dim, p.grad, row * dim);
}

// each(row, buffers) for all rows, a few a task.
template <class Real, class Each>
void for_rows(int64_t rows, int dim, const ParallelFor& parallel_for, void* workspace, const Each& each) {
  void* aligned = reinterpret_cast<void*>(Workspace::aligned(reinterpret_cast<uintptr_t>(workspace)));
  parallel_for(row_tasks(rows), [&](int64_t task) {
    const RowBuffers<Real> buffers(dim, aligned, task);
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) each(row, buffers);
  });
}

inline size_t row_workspace_bytes(int64_t rows, bool is_double, int dim) {
  return static_cast<size_t>(row_tasks(rows) + 1) * row_task_bytes(is_double, dim);
}

size_t head_rows_workspace_bytes(const HeadRowsArguments& p) {
  return row_workspace_bytes(p.extra_rows + p.rows, p.container_dtype == Dtype::kFloat64, p.dim);
}

template <class Real>
void head_rows_of(const HeadRowsArguments& p, const ParallelFor& parallel_for, void* workspace) {
  for_rows<Real>(p.extra_rows + p.rows, p.dim, parallel_for, workspace, [&](int64_t row, const RowBuffers<Real>& b) {
    if (row < p.extra_rows) {
      extra_row(p, row, b);
    } else {
      head_row(p, row - p.extra_rows, b);
    }
  });
}

void head_rows(const HeadRowsArguments& p, const ParallelFor& parallel_for, void* workspace) {
  if (p.container_dtype == Dtype::kFloat64) {
    head_rows_of<double>(p, parallel_for, workspace);
  } else {
    head_rows_of<float>(p, parallel_for, workspace);
  }
}

size_t row_gradients_workspace_bytes(const RowGradientArguments& p) {
  return row_workspace_bytes(p.rows, p.embedding_dtype == Dtype::kFloat64, p.dim);
}

template <class Real>
void row_gradients_of(const RowGradientArguments& p, const ParallelFor& parallel_for, void* workspace) {
  for_rows<Real>(p.rows, p.dim, parallel_for, workspace,
                 [&](int64_t row, const RowBuffers<Real>& b) { row_gradient(p, row, b); });
}

void row_gradients(const RowGradientArguments& p, const ParallelFor& parallel_for, void* workspace) {
  if (p.embedding_dtype == Dtype::kFloat64) {
    row_gradients_of<double>(p, parallel_for, workspace);
  } else {
    row_gradients_of<float>(p, parallel_for, workspace);
  }
}

void write_slots(const EnqueueArguments& p, const int64_t* slots, const ParallelFor& parallel_for) {
  const auto write = [&](auto real) {
    using Real = decltype(real);
    parallel_for(row_tasks(p.rows), [&](int64_t task) {
      const int64_t end = std::min(p.rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < end; ++row) {
        const Real* center = static_cast<const Real*>(p.new_centers) + row * p.dim;
        if (slots[row] >= 0) write_row(p.container_dtype, center, p.dim, p.centers, slots[row] * p.dim);
      }
    });
  };
  if (p.container_dtype == Dtype::kFloat64) {
    write(double{});
  } else {
    write(float{});
  }
}
