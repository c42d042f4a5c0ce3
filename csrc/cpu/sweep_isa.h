// The sweep itself, for one instruction set. Included inside a kernels_<isa>.cpp (namespace attfc::cpu::<isa>),
// after row_sums.h.
//
// Work is cut into tasks = row blocks x class splits, by the shape alone, so that results do not depend on the number
// of threads. A task walks the tiles (kTile centres) of its split; for each tile and each panel (kPanel rows):
//     1. cosines:   C[kTile][kPanel]  = tile . panel
//     2. weights:   G[kTile][kPanel]  = exp(scale N(c) - R) N'(c) center_scale, and the row sums
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

  // Cosines and weights of a panel stay in the first-level cache. The matrix unit, done with a tile sooner than with
  // moving the sums of the second product in and out, takes more centres at a time.
  static constexpr int kTile = Operand::kInMatrixUnit ? 128 : 48;

  using Panels = RowPanels<Input, kTile>;
  static constexpr int kLanes = Panels::kLanes, kVectors = Panels::kVectors, kPanel = Panels::kPanel;
  static constexpr int kOut = Panels::kOut;
  static constexpr int kPanelsPerBlock = 3;  // panels, their accumulators and a tile share the second level
  static constexpr int kTargetTasks = 32;    // enough for many threads, few enough for the workspace
  static constexpr int kMinCentersPerSplit = 384;

  using Rows = RowSums<Real, kPanelsPerBlock * kPanel>;

 public:
  explicit Sweep(const SweepArguments& arguments) : arg_(arguments), panels_(arguments, workspace_) {
    const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    row_blocks_ = divide_up(panels_.panels, kPanelsPerBlock);
    tiles_ = divide_up(arg_.num_centers, kTile);
    const int64_t bytes_per_split = std::max<int64_t>(panels_.padded_rows * accumulator_dim() * sizeof(Real), 1);
    const int64_t wanted = divide_up(kTargetTasks, std::max<int64_t>(row_blocks_, 1));
    const int64_t affordable = static_cast<int64_t>(kMaxWorkspaceBytes) / bytes_per_split;
    splits_ = std::max<int64_t>(1, std::min({wanted, affordable, tiles_ / (kMinCentersPerSplit / kTile)}));
    tiles_per_split_ = divide_up(tiles_, splits_);
    lay_out();
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run(const ParallelFor& parallel_for, void* workspace) {
    if (arg_.num_rows == 0) return;
    workspace_.place(workspace);
    panels_.number_classes();
    parallel_for(panels_.panels, [this](int64_t panel) {
      panels_.pack(panel, [this](int64_t row) { return arg_.target_logit<Real>(row); });
    });
    parallel_for(row_blocks_ * splits_, [this](int64_t task) {
      if (!arg_.is_modulated())
        run_task<false, false>(task);
      else if (!arg_.need_moments)
        run_task<true, false>(task);
      else
        run_task<true, true>(task);
    });
    parallel_for(panels_.panels, [this](int64_t panel) { merge_rows(panel); });
  }

 private:
  // ---- workspace ----
  int64_t accumulator_dim() const { return arg_.need_grad ? panels_.padded_dim : 0; }

  void lay_out() {
    partials_at_ = workspace_.reserve(sizeof(Partial) * panels_.padded_rows * splits_);
    accumulators_at_ = workspace_.reserve(sizeof(Real) * panels_.padded_rows * accumulator_dim() * splits_);
    scratch_bytes_ =
        Workspace::aligned(sizeof(Real) * 2 * kTile * kPanel +
                           sizeof(Scalar) * Tile<Input, kTile>::scratch_scalars(panels_.padded_dim, arg_.need_grad));
    scratch_at_ = workspace_.reserve(scratch_bytes_ * row_blocks_ * splits_);
  }

  Partial* partials(int64_t split) const { return workspace_.at<Partial>(partials_at_) + split * panels_.padded_rows; }
  Real* accumulator(int64_t split, int64_t row) const {
    return workspace_.at<Real>(accumulators_at_) + (split * panels_.padded_rows + row) * panels_.padded_dim;
  }

  // ---- what follows the cosines of a (tile, panel) ----
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
        return weigh_tile<kModulated, kMoments, Input, kTile>(tile, panels_.inputs, row, scale2, reference,
                                                              cosine + lane0, weight + lane0, kPanel);
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

  Real target_share() const { return arg_.has_target_logit() ? Real(1) / static_cast<Real>(splits_) : Real(0); }

  void move_row(Rows& rows, int index, int64_t split, int64_t row, Real to) const {
    const Real factor = rows.move(index, to, panels_.inputs.reference[row], target_share());
    if (!arg_.need_grad) return;
    Real* sums = accumulator(split, row);
    for (int64_t d = 0; d < panels_.padded_dim; ++d) sums[d] *= factor;
  }

  void accumulate_gradient(Tile<Input, kTile>& tile, int64_t split, int64_t panel, const Real* weight, const int* live,
                           int live_count) const {
    const Scalar* weights = reinterpret_cast<const Scalar*>(weight);
    const Scalar* vectors = tile.vectors();
    int64_t d = 0;
    const auto columns_by = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      for (; d + kWidth * kLanes <= panels_.padded_dim; d += kWidth * kLanes)
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
    columns_by(std::integral_constant<int, kVectors>{});
    columns_by(std::integral_constant<int, 1>{});
  }

  // The same in the matrix unit, whose left side is the weights of 16 rows: the live ones are brought together.
  void accumulate_gradient_in_matrix_unit(Tile<Input, kTile>& tile, int64_t split, int64_t panel, Real* weight,
                                          const int* live, int live_count) const {
    constexpr int kRows = Operand::kRows, kColumns = Operand::kColumns, kSteps = kTile / 2;
    const Scalar* pairs = reinterpret_cast<const Scalar*>(weight);
    Scalar* left = reinterpret_cast<Scalar*>(weight) + kSteps * kPanel;  // pairs fill one half of the weights' memory
    for (int row = 0; row < kPanel; row += kRows)
      for (int step = 0; step < kSteps; step += Operand::kSteps)
        Operand::transpose(pairs + step * kPanel + row, kPanel, left + row * kSteps + step, kSteps);
    if (live_count < kPanel)
      for (int i = 0; i < live_count; ++i)
        std::memmove(left + i * kSteps, left + live[i] * kSteps, kSteps * sizeof(Scalar));
    const Scalar* vectors = tile.vectors();
    const int64_t vector_bytes = tile.vector_stride() * sizeof(Scalar);
    const auto are_neighbours = [&](int first, int count) {
      return first + count <= live_count && live[first + count - 1] - live[first] == count - 1;
    };
    for (int64_t d = 0; d < panels_.padded_dim; d += kColumns) {
      const auto multiply = [&](auto registers, int first, Real* out, int64_t out_stride, bool add) {
        Operand::template multiply<decltype(registers)::value>(left + first * kSteps, kSteps * sizeof(Scalar),
                                                               vectors + d, vector_bytes, out, out_stride, kSteps, add);
      };
      const auto sums = [&](int i) { return accumulator(split, panel * kPanel + live[i]) + d; };
      for (int first = 0, count; first < live_count; first += count) {
        count = are_neighbours(first, 2 * kRows) ? 2 * kRows : kRows;
        if (count == 2 * kRows) {
          multiply(std::integral_constant<int, 2>{}, first, sums(first), panels_.padded_dim, true);
        } else if (are_neighbours(first, kRows)) {
          multiply(std::integral_constant<int, 1>{}, first, sums(first), panels_.padded_dim, true);
        } else {
          alignas(64) Real apart[kRows * kColumns];
          multiply(std::integral_constant<int, 1>{}, first, apart, kColumns, false);
          for (int i = 0; i < std::min(kRows, live_count - first); ++i)
            for (int v = 0; v < kColumns; v += kLanes) {
              Real* to = sums(first + i) + v;
              store(to, load<Vector>(to) + load<Vector>(apart + i * kColumns + v));
            }
        }
      }
    }
  }

  // ---- a task, and the end ----
  template <bool kModulated, bool kMoments>
  void run_task(int64_t task) const {
    const int64_t split = task % splits_, block = task / splits_;
    const int64_t first_panel = block * kPanelsPerBlock;
    const int64_t last_panel = std::min(panels_.panels, first_panel + kPanelsPerBlock);
    Real* cosine = workspace_.at<Real>(scratch_at_ + task * scratch_bytes_);
    Real* weight = cosine + kTile * kPanel;
    Tile<Input, kTile> tile(reinterpret_cast<Scalar*>(weight + kTile * kPanel), panels_.padded_dim);
    const ClassIds<Int> ids = panels_.class_ids();
    const typename Operand::Unit unit;

    Rows rows;
    const int64_t first_row = first_panel * kPanel, last_row = last_panel * kPanel;
    for (int64_t row = first_row; row < last_row; ++row) {
      rows.start(static_cast<int>(row - first_row), panels_.inputs.reference[row], target_share());
      if (arg_.need_grad) std::fill_n(accumulator(split, row), panels_.padded_dim, Real(0));
    }
    int live[kPanel + 1];  // one more: weigh() writes past the last
    const int64_t last_tile = std::min(tiles_, (split + 1) * tiles_per_split_);
    for (int64_t t = split * tiles_per_split_; t < last_tile; ++t) {
      if (!tile.open(arg_, ids, t * kTile)) continue;
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        panels_.cosines(tile, panel, cosine);
        const int first = static_cast<int>((panel - first_panel) * kPanel);
        const int live_count = weigh<kModulated, kMoments>(tile, split, panel, rows, first, cosine, weight, live);
        if (!arg_.need_grad || live_count == 0) continue;
        if constexpr (Operand::kInMatrixUnit)
          accumulate_gradient_in_matrix_unit(tile, split, panel, weight, live, live_count);
        else
          accumulate_gradient(tile, split, panel, weight, live, live_count);
      }
    }
    for (int64_t row = first_row; row < last_row; ++row)
      partials(split)[row] = rows.partial(static_cast<int>(row - first_row));
  }

  void merge_rows(int64_t panel) const {
    const int64_t last = std::min(arg_.num_rows, (panel + 1) * kPanel);
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
    const bool ignored = !panels_.is_used(row), none = ignored || part.sum == 0;
    const double target_mass =
        arg_.has_target_logit() ? move_factor<double>(panels_.inputs.reference[row] * kLn2, part.reference) : 0;
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
  Workspace workspace_;
  Panels panels_;
  int64_t row_blocks_, tiles_, splits_, tiles_per_split_;
  size_t partials_at_, accumulators_at_, scratch_at_, scratch_bytes_;
};

size_t sweep_workspace_bytes(const SweepArguments& arguments) {
  return with_input(arguments.dtype, [&](auto input) { return Sweep<decltype(input)>(arguments).workspace_bytes(); });
}

void sweep(const SweepArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  with_input(arguments.dtype, [&](auto input) { Sweep<decltype(input)>(arguments).run(parallel_for, workspace); });
}
