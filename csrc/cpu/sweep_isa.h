// The sweep itself, for one instruction set. Included inside a sweep_<isa>.cpp (namespace attfc::cpu::<isa>), after
// row_sums.h.
//
// Work is cut into tasks = row blocks x class splits, by the shape alone, so that results do not depend on the number
// of threads. A task walks the tiles (kTile centres) of its split; for each tile and each panel (kPanel rows):
//     1. cosines:   C[kTile][kPanel]  = tile . panel
//     2. weights:   G[kTile][kPanel]  = exp(scale N(c) - R) N'(c), and the row sums
//     3. gradient:  O[row][dim]      += G^T . tile, only for rows that may not omit this tile (../partial_lse.h)
// merge_rows() then adds the splits of each row and writes the outputs.

template <class Input>
class Sweep {
  using Operand = typename OperandOf<Input>::Type;
  using Scalar = typename Operand::Scalar;
  using Real = typename Operand::Real;
  using Vector = typename Simd<Real>::Vector;
  using Mask = typename Simd<Real>::Mask;
  using Int = typename Simd<Real>::Int;
  using Partial = PartialLse<double>;

  static constexpr int kLanes = Operand::kLanes;
  static constexpr int kVectors = ATTFC_SIMD_VECTORS;
  static constexpr int kPanel = kVectors * kLanes;
  static constexpr int kOut = 6;
  static constexpr int kTile = 48;           // C and G of a panel stay in the first-level cache
  static constexpr int kStepsPerBlock = 64;  // so does this much of a panel
  static constexpr int kPanelsPerBlock = 3;  // panels, their accumulators and a tile share the second level
  static constexpr int kTargetTasks = 32;    // enough for many threads, few enough for the workspace
  static constexpr int kMinTilesPerSplit = 8;
  static_assert(kTile % kOut == 0 && kTile % 2 == 0, "a tile is whole groups of outputs and of pairs");

  using Rows = RowSums<Real, kPanelsPerBlock * kPanel>;

 public:
  explicit Sweep(const SweepArguments& arguments) : arg_(arguments) {
    const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    constexpr int64_t kDimUnit = kLanes > 2 ? kLanes : 2;
    panels_ = divide_up(arg_.rows, kPanel);
    padded_rows_ = panels_ * kPanel;
    padded_dim_ = divide_up(arg_.dim, kDimUnit) * kDimUnit;
    steps_ = padded_dim_ / Operand::kNumbersPerStep;
    row_blocks_ = divide_up(panels_, kPanelsPerBlock);
    tiles_ = divide_up(arg_.centers, kTile);
    const int64_t bytes_per_split = std::max<int64_t>(padded_rows_ * accumulator_dim() * sizeof(Real), 1);
    const int64_t wanted = divide_up(kTargetTasks, std::max<int64_t>(row_blocks_, 1));
    const int64_t affordable = static_cast<int64_t>(kMaxWorkspaceBytes) / bytes_per_split;
    splits_ = std::max<int64_t>(1, std::min({wanted, affordable, tiles_ / kMinTilesPerSplit}));
    tiles_per_split_ = divide_up(tiles_, splits_);
    lay_out();
  }

  size_t workspace_bytes() const { return bytes_; }

  void run(const ParallelFor& parallel_for, void* workspace) {
    if (arg_.rows == 0) return;
    const uintptr_t start = reinterpret_cast<uintptr_t>(workspace);
    base_ = reinterpret_cast<char*>((start + kAlignment - 1) / kAlignment * kAlignment);
    Real* values = at<Real>(rows_at_);
    inputs_ = {values,
               values + padded_rows_,
               values + 2 * padded_rows_,
               values + 3 * padded_rows_,
               values + 4 * padded_rows_,
               at<Int>(ids_at_)};
    ClassIds<Int> ids = class_ids();
    ids.number(arg_.labels, arg_.rows, padded_rows_, inputs_.id);
    parallel_for(panels_, [this](int64_t panel) { pack_panel(panel); });
    parallel_for(row_blocks_ * splits_, [this](int64_t task) {
      if (!arg_.threshold)
        run_task<false, false>(task);
      else if (!arg_.need_moments)
        run_task<true, false>(task);
      else
        run_task<true, true>(task);
    });
    parallel_for(panels_, [this](int64_t panel) { merge_rows(panel); });
  }

 private:
  // ---- workspace ----
  static constexpr size_t kAlignment = 64;

  int64_t accumulator_dim() const { return arg_.need_grad ? padded_dim_ : 0; }

  size_t reserve(size_t bytes) {
    const size_t offset = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }

  void lay_out() {
    packed_at_ = reserve(sizeof(Scalar) * padded_rows_ * steps_);
    rows_at_ = reserve(sizeof(Real) * padded_rows_ * 5);
    ids_at_ = reserve(sizeof(Int) * padded_rows_);
    keys_at_ = reserve(sizeof(int64_t) * ClassIds<Int>::table_size(arg_.rows));
    values_at_ = reserve(sizeof(Int) * ClassIds<Int>::table_size(arg_.rows));
    partials_at_ = reserve(sizeof(Partial) * padded_rows_ * splits_);
    accumulators_at_ = reserve(sizeof(Real) * padded_rows_ * accumulator_dim() * splits_);
    const size_t scratch =
        sizeof(Real) * 2 * kTile * kPanel + sizeof(Scalar) * Tile<Input, kTile>::scratch_scalars(padded_dim_);
    scratch_bytes_ = (scratch + kAlignment - 1) / kAlignment * kAlignment;
    scratch_at_ = reserve(scratch_bytes_ * row_blocks_ * splits_);
    bytes_ += kAlignment;  // run() aligns the start
  }

  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  ClassIds<Int> class_ids() const {
    return {at<int64_t>(keys_at_), at<Int>(values_at_), ClassIds<Int>::table_size(arg_.rows)};
  }
  Scalar* packed_panel(int64_t panel) const { return at<Scalar>(packed_at_) + panel * steps_ * kPanel; }
  Partial* partials(int64_t split) const { return at<Partial>(partials_at_) + split * padded_rows_; }
  Real* accumulator(int64_t split, int64_t row) const {
    return at<Real>(accumulators_at_) + (split * padded_rows_ + row) * padded_dim_;
  }

  // ---- rows ----
  void pack_panel(int64_t panel) const {
    Scalar* packed = packed_panel(panel);
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const int64_t row = panel * kPanel + lane;
      const bool used = inputs_.id[row] != kIgnoredRow;
      // An ignored row becomes zeros that measure against +inf: no probability, nothing to move, every tile omitted.
      const Input* from = static_cast<const Input*>(arg_.embeddings) + (used ? row * arg_.embedding_stride : 0);
      pack_vector(from, used ? arg_.dim : 0, packed + lane, steps_, kPanel);
      const auto value = [&](const void* given, Real otherwise) {
        return used && given ? static_cast<const Real*>(given)[row] : otherwise;
      };
      constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
      inputs_.threshold[row] = value(arg_.threshold, kInfinity);
      inputs_.quad[row] = value(arg_.quad, 0);
      inputs_.lin[row] = value(arg_.lin, 0);
      inputs_.constant[row] = value(arg_.constant, 0);
      inputs_.reference[row] = used ? static_cast<Real>(value(arg_.reference, -kInfinity) * kLog2e) : kInfinity;
    }
  }

  // ---- the three stages of a (tile, panel) ----
  void cosines(const Tile<Input, kTile>& tile, int64_t panel, Real* cosine) const {
    const Scalar* packed = packed_panel(panel);
    for (int64_t step = 0; step < steps_; step += kStepsPerBlock) {
      const int64_t steps = std::min<int64_t>(kStepsPerBlock, steps_ - step);
      for (int j = 0; j < kTile; j += kOut) {
        const Scalar* scalars[kOut];
        Real* out[kOut];
        for (int a = 0; a < kOut; ++a) {
          scalars[a] = tile.center[j + a] + step;
          out[a] = cosine + (j + a) * kPanel;
        }
        multiply_accumulate<Operand, kOut, kVectors>(packed + step * kPanel, kPanel, scalars, 1, out, steps, step > 0);
      }
    }
  }

  // Fills `weight` and adds the tile to the panel's rows, which begin at `first` in `rows`. Returns how many rows need
  // the tile's gradient, and lists them in `live`.
  template <bool kModulated, bool kMoments>
  int weigh(const Tile<Input, kTile>& tile, int64_t split, int64_t panel, Rows& rows, int first, const Real* cosine,
            Real* weight, int* live) const {
    const Real scale2 = static_cast<Real>(arg_.scale * kLog2e);
    int live_count = 0;
    for (int v = 0; v < kVectors; ++v) {
      const int lane0 = v * kLanes;
      const int64_t row = panel * kPanel + lane0;
      Real* reference = rows.reference + first + lane0;
      const auto weigh_rows = [&] {
        return weigh_tile<kModulated, kMoments, Input, kTile>(tile, inputs_, row, scale2, reference, cosine + lane0,
                                                              weight + lane0, kPanel);
      };
      TileSums<Real> sums = weigh_rows();
      const Vector max_logit = sums.max_modulated * scale2;
      const Mask must_move = max_logit > load<Vector>(reference) + Real(kSafeDistanceLog2);
      if (any(must_move)) {
        for (int lane = 0; lane < kLanes; ++lane)
          if (must_move[lane]) move_row(rows, first + lane0 + lane, split, row + lane, max_logit[lane]);
        sums = weigh_rows();
      }
      const Mask is_live = add_tile<kMoments>(rows, first + lane0, sums, static_cast<Real>(arg_.grad_tolerance));
      for (int lane = 0; lane < kLanes; ++lane) {
        live[live_count] = lane0 + lane;
        live_count += is_live[lane] != 0;
      }
    }
    return live_count;
  }

  Real target_share() const { return arg_.reference ? Real(1) / static_cast<Real>(splits_) : Real(0); }

  void move_row(Rows& rows, int index, int64_t split, int64_t row, Real to) const {
    const Real factor = rows.move(index, to, inputs_.reference[row], target_share());
    if (!arg_.need_grad) return;
    Real* sums = accumulator(split, row);
    for (int64_t d = 0; d < padded_dim_; ++d) sums[d] *= factor;
  }

  void accumulate_gradient(Tile<Input, kTile>& tile, int64_t split, int64_t panel, const Real* weight, const int* live,
                           int live_count) const {
    const Scalar* weights = reinterpret_cast<const Scalar*>(weight);
    const Scalar* vectors = tile.vectors();
    int64_t d = 0;
    const auto stretches_of = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      for (; d + kWidth * kLanes <= padded_dim_; d += kWidth * kLanes)
        for (int first = 0; first < live_count; first += kOut) {
          const int count = std::min(kOut, live_count - first);
          const Scalar* scalars[kOut] = {};
          Real* out[kOut] = {};
          for (int a = 0; a < count; ++a) {
            scalars[a] = weights + live[first + a];
            out[a] = accumulator(split, panel * kPanel + live[first + a]) + d;
          }
          multiply_accumulate_upto<Operand, kOut, kWidth>(count, vectors + d, tile.vector_stride(), scalars, kPanel,
                                                          out, kTile / Operand::kNumbersPerStep, true);
        }
    };
    stretches_of(std::integral_constant<int, kVectors>{});
    stretches_of(std::integral_constant<int, 1>{});
  }

  // ---- a task, and the end ----
  template <bool kModulated, bool kMoments>
  void run_task(int64_t task) const {
    const int64_t split = task % splits_, block = task / splits_;
    const int64_t first_panel = block * kPanelsPerBlock;
    const int64_t last_panel = std::min(panels_, first_panel + kPanelsPerBlock);
    Real* cosine = at<Real>(scratch_at_ + task * scratch_bytes_);
    Real* weight = cosine + kTile * kPanel;
    Tile<Input, kTile> tile(reinterpret_cast<Scalar*>(weight + kTile * kPanel), padded_dim_);
    const ClassIds<Int> ids = class_ids();

    Rows rows;
    const int64_t first_row = first_panel * kPanel, last_row = last_panel * kPanel;
    for (int64_t row = first_row; row < last_row; ++row) {
      rows.start(static_cast<int>(row - first_row), inputs_.reference[row], target_share());
      if (arg_.need_grad) std::fill_n(accumulator(split, row), padded_dim_, Real(0));
    }
    int live[kPanel + 1];  // one more: weigh() writes past the last
    const int64_t last_tile = std::min(tiles_, (split + 1) * tiles_per_split_);
    for (int64_t t = split * tiles_per_split_; t < last_tile; ++t) {
      if (!tile.open(arg_, ids, t * kTile)) continue;
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        cosines(tile, panel, cosine);
        const int first = static_cast<int>((panel - first_panel) * kPanel);
        const int live_count = weigh<kModulated, kMoments>(tile, split, panel, rows, first, cosine, weight, live);
        if (arg_.need_grad && live_count > 0) accumulate_gradient(tile, split, panel, weight, live, live_count);
      }
    }
    for (int64_t row = first_row; row < last_row; ++row)
      partials(split)[row] = rows.partial(static_cast<int>(row - first_row));
  }

  void merge_rows(int64_t panel) const {
    const int64_t last = std::min(arg_.rows, (panel + 1) * kPanel);
    for (int64_t row = panel * kPanel; row < last; ++row) {
      Partial part = partials(0)[row];
      Real* sums = accumulator(0, row);
      for (int64_t split = 1; split < splits_; ++split) {
        double factor_part, factor_other;
        merge<double>(part, partials(split)[row], factor_part, factor_other);
        if (!arg_.need_grad) continue;
        const Real* other = accumulator(split, row);
        for (int64_t d = 0; d < arg_.dim; ++d)
          sums[d] = sums[d] * static_cast<Real>(factor_part) + other[d] * static_cast<Real>(factor_other);
      }
      write_row(row, part, sums);
    }
  }

  void write_row(int64_t row, const Partial& part, const Real* sums) const {
    const double lowest = -std::numeric_limits<double>::infinity();
    const bool ignored = inputs_.id[row] == kIgnoredRow, none = ignored || part.sum == 0;
    const double target_mass = arg_.reference ? move_factor<double>(inputs_.reference[row] * kLn2, part.reference) : 0;
    const auto write = [row](void* to, double value) { static_cast<Real*>(to)[row] = static_cast<Real>(value); };
    write(arg_.lse, none ? lowest : part.reference + std::log(part.sum));
    write(arg_.max_cosine, ignored ? lowest : part.max_cosine);
    write(arg_.omitted_mass, none || part.omitted == 0 ? 0 : part.omitted / (part.sum + target_mass));
    arg_.hard_count[row] = ignored ? 0 : part.hard_count;
    const double to_gradient = none ? 0 : arg_.scale / part.sum;
    if (arg_.need_moments) {
      Real* moments = static_cast<Real*>(arg_.moments) + 3 * row;
      moments[0] = static_cast<Real>(part.moment_quad * to_gradient);
      moments[1] = static_cast<Real>(part.moment_lin * to_gradient);
      moments[2] = static_cast<Real>(part.moment_const * to_gradient);
    }
    if (arg_.need_grad) {
      Real* grad = static_cast<Real*>(arg_.unit_grad) + row * arg_.dim;
      for (int64_t d = 0; d < arg_.dim; ++d) grad[d] = none ? Real(0) : static_cast<Real>(sums[d] * to_gradient);
    }
  }

  const SweepArguments& arg_;
  RowInputs<Real> inputs_{};
  int64_t panels_, padded_rows_, padded_dim_, steps_, row_blocks_, tiles_, splits_, tiles_per_split_;
  size_t bytes_ = 0, packed_at_, rows_at_, ids_at_, keys_at_, values_at_, partials_at_, accumulators_at_, scratch_at_,
         scratch_bytes_;
  char* base_ = nullptr;
};

// Calls `use(sweep)` with the Sweep of the arguments' dtype.
template <class Use>
void with_sweep(const SweepArguments& arguments, const Use& use) {
  const auto call = [&](auto input) {
    Sweep<decltype(input)> sweep(arguments);
    use(sweep);
  };
  switch (arguments.dtype) {
    case Dtype::kFloat32: return call(float{});
    case Dtype::kFloat64: return call(double{});
    case Dtype::kBFloat16: return call(BFloat16{});
    case Dtype::kFloat16: return call(Half{});
  }
}

size_t sweep_workspace_bytes(const SweepArguments& arguments) {
  size_t bytes = 0;
  with_sweep(arguments, [&](auto& sweep) { bytes = sweep.workspace_bytes(); });
  return bytes;
}

void sweep(const SweepArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  with_sweep(arguments, [&](auto& sweep) { sweep.run(parallel_for, workspace); });
}
