// The gradient of the class centres, for one instruction set: see center_gradient.h. Included inside a
// kernels_<isa>.cpp (namespace attfc::cpu::<isa>), after row_panels.h.
//
// A task walks its share of the tiles (kTile centres), and for each tile the batch in blocks of kBlock rows:
//     1. cosines:   C[kTile][kPanel]  = tile . panel, for each panel of the block
//     2. weights:   G[kTile][kBlock]  = d / d cosine, and which groups of kGroup rows matter to the tile
//     3. gradient:  A[kTile][dim]    += G . block, over the rows of those groups alone
// then projects A and writes it, once. Every tile is its own sum in a fixed order: tasks and threads change nothing.

template <class Input>
class CenterGradient {
  using Operand = typename OperandOf<Input>::Type;
  using Scalar = typename Operand::Scalar;
  using Real = typename Operand::Real;
  using Vector = typename Simd<Real>::Vector;
  using Mask = typename Simd<Real>::Mask;
  using Int = typename Simd<Real>::Int;

  // As in the sweep, but each centre's sum is moved only once a block: small tiles leave out more.
  static constexpr int kTile = Operand::kInMatrixUnit ? 64 : 48;

  using Panels = RowPanels<Input, kTile>;
  static constexpr int kLanes = Panels::kLanes, kVectors = Panels::kVectors, kPanel = Panels::kPanel;
  static constexpr int kOut = Panels::kOut;
  static constexpr bool kPairs = Operand::kNumbersPerStep == 2;
  // Long enough sums, while G stays in the first-level cache (of the matrix unit: in the second).
  static constexpr int kBlock = Operand::kInMatrixUnit ? 128 : kPanel < 64 ? 64 : kPanel;
  static constexpr int kBlockSteps = kBlock / Operand::kNumbersPerStep;
  static constexpr int kGroup = std::max(kLanes, Operand::kWholeNumbers);  // rows that are left out together
  static constexpr int kGroups = kBlock / kGroup;
  static constexpr int kNarrowStrip = kGroup / kLanes;  // vectors
  static constexpr int kTargetTasks = 64;
  static_assert(kBlock % kPanel == 0 && kLanes % Operand::kNumbersPerStep == 0);

  // What one weight is stored as: bfloat16 of neighbouring rows are the pairs of a step.
  using Weight = std::conditional_t<kPairs, uint16_t, Real>;

 public:
  explicit CenterGradient(const CenterGradientArguments& arguments) : arg_(arguments), panels_(arguments, workspace_) {
    blocks_ = (panels_.padded_rows + kBlock - 1) / kBlock;
    tiles_ = (arg_.num_centers + kTile - 1) / kTile;
    vectors_at_ = workspace_.reserve(sizeof(Scalar) * blocks_ * kBlockSteps * panels_.padded_dim);
    rows_at_ = workspace_.reserve(sizeof(Real) * 3 * panels_.padded_rows);
    scratch_bytes_ = Workspace::aligned(
        sizeof(Real) * (kTile * (kPanel + panels_.padded_dim) + panels_.padded_dim) + sizeof(Weight) * kTile * kBlock +
        sizeof(Scalar) * Tile<Input, kTile>::scratch_scalars(panels_.padded_dim, false));
    const int64_t affordable = static_cast<int64_t>(kMaxWorkspaceBytes / scratch_bytes_);
    const int64_t wanted = std::min<int64_t>({kTargetTasks, affordable, tiles_});
    tiles_per_task_ = wanted > 1 ? (tiles_ + wanted - 1) / wanted : std::max<int64_t>(tiles_, 1);
    tasks_ = (tiles_ + tiles_per_task_ - 1) / tiles_per_task_;
    scratch_at_ = workspace_.reserve(scratch_bytes_ * tasks_);
  }

  size_t workspace_bytes() const { return workspace_.bytes(); }

  void run(const ParallelFor& parallel_for, void* workspace) {
    workspace_.place(workspace);
    panels_.number_classes();
    parallel_for(blocks_, [this](int64_t block) { pack(block); });
    parallel_for(tasks_, [this](int64_t task) {
      if (arg_.is_modulated())
        run_task<true>(task);
      else
        run_task<false>(task);
    });
  }

 private:
  // ---- rows ----
  // [padded rows]: what q N' is multiplied by, the gradient of the own cosine, the mass that may be left out for each
  // slot of a tile.
  Real* factor() const { return workspace_.at<Real>(rows_at_); }
  Real* target() const { return factor() + panels_.padded_rows; }
  Real* allowance() const { return factor() + 2 * panels_.padded_rows; }

  // The block's embeddings as vectors: for each strip of columns (see for_each_strip) row after row, so that a strip is
  // one piece of memory: rows a power of two apart would share few sets of the first-level cache.
  Scalar* block_vectors(int64_t block) const {
    return workspace_.at<Scalar>(vectors_at_) + block * kBlockSteps * panels_.padded_dim;
  }

  // Calls body(width in vectors, first column) over the padded dimension.
  template <class Body>
  void for_each_strip(const Body& body) const {
    int64_t d = 0;
    for (; d + kPanel <= panels_.padded_dim; d += kPanel) body(std::integral_constant<int, kVectors>{}, d);
    for (; d < panels_.padded_dim; d += kNarrowStrip * kLanes) body(std::integral_constant<int, kNarrowStrip>{}, d);
  }

  void pack(int64_t block) const {
    const int64_t first = block * kBlock, last = std::min(panels_.padded_rows, first + kBlock);
    for (int64_t panel = first / kPanel; panel < last / kPanel; ++panel)
      panels_.pack(panel, [this](int64_t row) { return panels_.value(arg_.lse, row, 0); });
    for (int64_t row = first; row < last; ++row) {
      Real& reference = panels_.inputs.reference[row];
      const bool has_negatives = panels_.is_used(row) && reference != -std::numeric_limits<Real>::infinity();
      if (!has_negatives) reference = std::numeric_limits<Real>::infinity();  // no probability, as in an ignored row
      factor()[row] = has_negatives ? panels_.value(arg_.grad_lse, row, 0) * static_cast<Real>(arg_.scale) : Real(0);
      target()[row] = panels_.value(arg_.target_grad, row, 0);
      double allowed = 0;
      if (has_negatives && arg_.grad_tolerance > 0) {
        const double lse = panels_.value(arg_.lse, row, 0);
        const double softmax = 1 + std::exp(arg_.target_logit<Real>(row) - lse);
        allowed = arg_.grad_tolerance / static_cast<double>(arg_.num_centers) * softmax;
      }
      allowance()[row] = static_cast<Real>(allowed);
    }
    // Rows past the last panel are in no group that matters: their memory stays as it is.
    for_each_strip([&](auto width, int64_t d) {
      constexpr int kColumns = decltype(width)::value * kLanes;
      Scalar* to = block_vectors(block) + d * kBlockSteps;
      const int64_t columns = std::min<int64_t>(kColumns, arg_.dim - d);
      for (int64_t row = first; row < last; ++row) {
        const int64_t k = row - first;
        const bool is_used = panels_.is_used(row);
        const Input* from = panels_.embedding(is_used ? row : 0) + d;
        const int64_t used = is_used ? columns : 0;
        if constexpr (kPairs) {
          uint16_t* halves = reinterpret_cast<uint16_t*>(to + k / 2 * kColumns) + k % 2;
          for (int64_t i = 0; i < kColumns; ++i) halves[2 * i] = i < used ? from[i].bits : uint16_t{0};
        } else {
          for (int64_t i = 0; i < kColumns; ++i) to[k * kColumns + i] = i < used ? to_real(from[i]) : Real(0);
        }
      }
    });
  }

  // ---- the two stages that follow the cosines ----
  // From the cosines of the tile with kLanes rows (`cosine`, a column every kPanel) to `weight` (every kBlock); true
  // when the rows matter to the tile.
  template <bool kModulated>
  bool weigh(const Tile<Input, kTile>& tile, int slots, int64_t row, const Real* cosine, Weight* weight) const {
    const Vector reference = load<Vector>(panels_.inputs.reference + row), factors = load<Vector>(factor() + row);
    const Vector scale2 = Vector{} + static_cast<Real>(arg_.scale * kLog2e);
    RowModulation<Vector> modulation{};
    if constexpr (kModulated) modulation = panels_.inputs.template modulation<Vector>(row);
    Vector mass{};
    Mask own{};
    for (int j = 0; j < kTile; ++j) {
      Vector gradient{};
      if (tile.id[j] != kEmptySlot) {
        Vector c = load<Vector>(cosine + j * kPanel);
        if (tile.scale) c *= tile.scale[j];
        Vector modulated = c, derivative{};
        if constexpr (kModulated) modulate(modulation, c, modulated, derivative);
        Vector probability = exp2_below_127(modulated * scale2 - reference);
        gradient = probability * factors;
        if constexpr (kModulated) gradient *= derivative;
        if (tile.id[j] >= 0) {  // some row's own class
          const Mask ids = load<Mask>(panels_.inputs.id + row);
          probability = ids == tile.id[j] ? Vector{} : probability;
          gradient = ids == tile.id[j] ? load<Vector>(target() + row) : gradient;
          own |= ids == tile.id[j];
        }
        mass += probability;
      }
      if constexpr (kPairs)
        Operand::store_narrow(weight + j * kBlock, gradient);
      else
        store(weight + j * kBlock, gradient);
    }
    // Not `mass > allowed`: a NaN must reach the gradient.
    const Mask may_omit = mass <= load<Vector>(allowance() + row) * static_cast<Real>(slots);
    return any(~may_omit) || (arg_.target_grad && any(own));
  }

  // Adds the rows of groups first ... last - 1 of the block to the tile's sums, or begins them.
  void accumulate(int64_t block, int first, int last, const Weight* weight, Real* sums, bool begin) const {
    const int64_t step = first * kGroup / Operand::kNumbersPerStep;
    const int64_t steps = (last - first) * kGroup / Operand::kNumbersPerStep;
    const Scalar* weights = reinterpret_cast<const Scalar*>(weight) + step;
    for_each_strip([&](auto width, int64_t d) {
      constexpr int kWidth = decltype(width)::value;
      const Scalar* vectors = block_vectors(block) + d * kBlockSteps + step * kWidth * kLanes;
      if constexpr (Operand::kInMatrixUnit) {
        for (int column = 0; column < kWidth * kLanes; column += Operand::kColumns)
          for (int j = 0; j < kTile; j += 2 * Operand::kRows)
            Operand::template multiply<2>(weights + j * kBlockSteps, kBlockSteps * sizeof(Scalar), vectors + column,
                                          kWidth * kLanes * sizeof(Scalar), sums + j * panels_.padded_dim + d + column,
                                          panels_.padded_dim, steps, !begin);
        return;
      }
      for (int j = 0; j < kTile; j += kOut) {
        const Scalar* scalars[kOut];
        Real* out[kOut];
        for (int a = 0; a < kOut; ++a) {
          scalars[a] = weights + (j + a) * kBlockSteps;
          out[a] = sums + (j + a) * panels_.padded_dim + d;
        }
        multiply_accumulate<Operand, kOut, kWidth>(vectors, kWidth * kLanes, scalars, 1, out, steps, !begin);
      }
    });
  }

  // ---- a task, and the end ----
  template <bool kModulated>
  void run_task(int64_t task) const {
    Real* sums = workspace_.at<Real>(scratch_at_ + task * scratch_bytes_);
    Real* cosine = sums + kTile * panels_.padded_dim;
    Real* center = cosine + kTile * kPanel;
    Scalar* packed = reinterpret_cast<Scalar*>(center + panels_.padded_dim);
    Tile<Input, kTile> tile(packed, panels_.padded_dim);
    Weight* weight = reinterpret_cast<Weight*>(packed + Tile<Input, kTile>::scratch_scalars(panels_.padded_dim, false));
    const ClassIds<Int> ids = panels_.class_ids();
    const typename Operand::Unit unit;

    const int64_t last_tile = std::min(tiles_, (task + 1) * tiles_per_task_);
    for (int64_t t = task * tiles_per_task_; t < last_tile; ++t) {
      const int slots = static_cast<int>(std::min<int64_t>(kTile, arg_.num_centers - t * kTile));
      bool begun = false;
      if (tile.open(arg_, ids, t * kTile)) {
        for (int64_t block = 0; block < blocks_; ++block) {
          const uint64_t matters = weigh_block<kModulated>(tile, slots, block, cosine, weight);
          for (int first = 0, last; first < kGroups; first = last + 1) {
            for (last = first; last < kGroups && (matters >> last & 1); ++last) {
            }
            if (last == first) continue;
            accumulate(block, first, last, weight, sums, !begun);
            begun = true;
          }
        }
      }
      for (int j = 0; j < slots; ++j)
        write(t * kTile + j, begun && tile.id[j] != kEmptySlot ? sums + j * panels_.padded_dim : nullptr, center);
    }
  }

  // Fills `weight` for the block; bit i: the rows of group i matter to the tile.
  template <bool kModulated>
  uint64_t weigh_block(const Tile<Input, kTile>& tile, int slots, int64_t block, Real* cosine, Weight* weight) const {
    static_assert(kGroups <= 64);
    uint64_t matters = 0;
    for (int p = 0; p < kBlock / kPanel; ++p) {
      const int64_t panel = block * (kBlock / kPanel) + p;
      if (panel >= panels_.panels) break;
      panels_.cosines(tile, panel, cosine);
      for (int v = 0; v < kVectors; ++v) {
        const int row = p * kPanel + v * kLanes;  // in the block
        const bool is_needed =
            weigh<kModulated>(tile, slots, panel * kPanel + v * kLanes, cosine + v * kLanes, weight + row);
        matters |= uint64_t{is_needed} << row / kGroup;
      }
    }
    return matters;
  }

  // Writes the gradient of one centre from its sums; null: zeros. `center`: room for a padded row.
  void write(int64_t slot, const Real* sums, Real* center) const {
    Input* to = static_cast<Input*>(arg_.gradient) + slot * arg_.dim;
    if (!sums) {
      std::memset(to, 0, sizeof(Input) * arg_.dim);
      return;
    }
    if (!arg_.center_scale) {
      for (int64_t d = 0; d < arg_.dim; ++d) to[d] = from_real<Input>(sums[d]);
      return;
    }
    const Input* from = static_cast<const Input*>(arg_.centers) + slot * arg_.center_stride;
    for (int64_t d = 0; d < arg_.dim; ++d) center[d] = to_real(from[d]);
    for (int64_t d = arg_.dim; d < panels_.padded_dim; ++d) center[d] = 0;
    Vector along{};
    for (int64_t d = 0; d < panels_.padded_dim; d += kLanes) along += load<Vector>(sums + d) * load<Vector>(center + d);
    Real dot = 0;
    for (int lane = 0; lane < kLanes; ++lane) dot += along[lane];
    const Real scale = static_cast<const Real*>(arg_.center_scale)[slot];
    const Real radial = dot * scale * scale;  // in this order: scale^2 alone may overflow
    for (int64_t d = 0; d < arg_.dim; ++d) to[d] = from_real<Input>(scale * (sums[d] - radial * center[d]));
  }

  const CenterGradientArguments& arg_;
  Workspace workspace_;
  Panels panels_;
  int64_t blocks_, tiles_, tiles_per_task_, tasks_;
  size_t vectors_at_, rows_at_, scratch_bytes_, scratch_at_;
};

size_t center_gradient_workspace_bytes(const CenterGradientArguments& arguments) {
  return with_input(arguments.dtype,
                    [&](auto input) { return CenterGradient<decltype(input)>(arguments).workspace_bytes(); });
}

void center_gradient(const CenterGradientArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  with_input(arguments.dtype,
             [&](auto input) { CenterGradient<decltype(input)>(arguments).run(parallel_for, workspace); });
}
