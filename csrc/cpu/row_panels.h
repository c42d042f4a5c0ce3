// The batch as both kernels want it: rows in SIMD lanes, kPanel to a panel, and the cosines of a tile with a panel.
// Included inside a kernels_<isa>.cpp, after tile.h.
//
// Logits are kept in base 2 here (z log2(e)), which saves the exponential two operations: p = 2^(scale2 N(c) - R2).

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Row parameters, all [padded rows]; reference in base 2.
template <class Real>
struct RowInputs {
  Real *threshold, *quad, *lin, *constant, *reference;
  typename Simd<Real>::Int* id;

  void set_modulation(int64_t row, const RowModulation<Real>& given) const {
    threshold[row] = given.threshold, quad[row] = given.quad, lin[row] = given.lin, constant[row] = given.constant;
  }
  template <class Vector>
  RowModulation<Vector> modulation(int64_t row) const {
    return {load<Vector>(threshold + row), load<Vector>(quad + row), load<Vector>(lin + row),
            load<Vector>(constant + row)};
  }
};

// kTile: centres of a tile.
template <class Input, int kTile>
class RowPanels {
  using Operand = typename OperandOf<Input>::Type;
  using Scalar = typename Operand::Scalar;
  using Real = typename Operand::Real;
  using Int = typename Simd<Real>::Int;

 public:
  static constexpr int kLanes = Operand::kLanes;
  static constexpr int kVectors = ATTFC_SIMD_VECTORS;
  static constexpr int kPanel = kVectors * kLanes;
  static constexpr int kOut = 6;  // sums of the products that share a vector; kOut x kVectors fill the registers
  static constexpr int kStepsPerBlock = 64;  // so does this much of a panel
  static_assert(kTile % (Operand::kInMatrixUnit ? Operand::kWholeNumbers : kOut) == 0, "a tile is whole groups");
  static_assert(kTile % Operand::kNumbersPerStep == 0, "and of pairs");

  RowPanels(const SweepInputs& arguments, Workspace& workspace) : arg_(arguments), workspace_(workspace) {
    constexpr int64_t kDimUnit = std::max(kLanes, Operand::kWholeNumbers);
    panels = (arg_.num_rows + kPanel - 1) / kPanel;
    padded_rows = panels * kPanel;
    padded_dim = (arg_.dim + kDimUnit - 1) / kDimUnit * kDimUnit;
    steps = padded_dim / Operand::kNumbersPerStep;
    packed_at_ = workspace.reserve(sizeof(Scalar) * padded_rows * steps);
    rows_at_ = workspace.reserve(sizeof(Real) * padded_rows * 5);
    ids_at_ = workspace.reserve(sizeof(Int) * padded_rows);
    keys_at_ = workspace.reserve(sizeof(int64_t) * ClassIds<Int>::table_size(arg_.num_rows));
    values_at_ = workspace.reserve(sizeof(Int) * ClassIds<Int>::table_size(arg_.num_rows));
  }

  // Numbers the batch's classes; call once, when the workspace is placed and before anything else.
  void number_classes() {
    Real* values = workspace_.at<Real>(rows_at_);
    inputs = {values,
              values + padded_rows,
              values + 2 * padded_rows,
              values + 3 * padded_rows,
              values + 4 * padded_rows,
              workspace_.at<Int>(ids_at_)};
    class_ids().number(arg_.labels, arg_.num_rows, padded_rows, inputs.id);
  }

  ClassIds<Int> class_ids() const {
    return {workspace_.at<int64_t>(keys_at_), workspace_.at<Int>(values_at_), ClassIds<Int>::table_size(arg_.num_rows)};
  }

  bool is_used(int64_t row) const { return inputs.id[row] != kIgnoredRow; }
  const Input* embedding(int64_t row) const {
    return static_cast<const Input*>(arg_.embeddings) + row * arg_.embedding_stride;
  }
  // A row's value, or `otherwise` where there is none or the row is ignored.
  Real value(const void* given, int64_t row, Real otherwise) const {
    return given && is_used(row) ? static_cast<const Real*>(given)[row] : otherwise;
  }

  // Fills the panel's embeddings and row parameters. reference_of(row): what the logits of a row that is not ignored
  // are measured against, in base e.
  template <class ReferenceOf>
  void pack(int64_t panel, const ReferenceOf& reference_of) const {
    Scalar* packed = packed_panel(panel);
    for (int64_t lane = 0; lane < kPanel; ++lane) {
      const int64_t row = panel * kPanel + lane;
      const bool used = is_used(row);
      // An ignored row becomes zeros that measure against +inf: no probability, nothing to move, every tile omitted.
      pack_vector(embedding(used ? row : 0), used ? arg_.dim : 0, packed + lane, steps, kPanel);
      constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
      inputs.set_modulation(row, used ? arg_.modulation<Real>(row) : no_modulation<Real>());
      inputs.reference[row] = used ? static_cast<Real>(reference_of(row) * kLog2e) : kInfinity;
    }
  }

  // cosine[kTile][kPanel], before center_scale.
  void cosines(const Tile<Input, kTile>& tile, int64_t panel, Real* cosine) const {
    const Scalar* packed = packed_panel(panel);
    if constexpr (Operand::kInMatrixUnit) {
      for (int j = 0; j < kTile; j += 2 * Operand::kRows)
        for (int lane = 0; lane < kPanel; lane += Operand::kColumns)
          Operand::template multiply<2>(tile.center[j], tile.center_stride_bytes, packed + lane,
                                        kPanel * sizeof(Scalar), cosine + j * kPanel + lane, kPanel, steps, false);
      return;
    }
    for (int64_t step = 0; step < steps; step += kStepsPerBlock) {
      const int64_t count = std::min<int64_t>(kStepsPerBlock, steps - step);
      for (int j = 0; j < kTile; j += kOut) {
        const Scalar* scalars[kOut];
        Real* out[kOut];
        for (int a = 0; a < kOut; ++a) {
          scalars[a] = tile.center[j + a] + step;
          out[a] = cosine + (j + a) * kPanel;
        }
        multiply_accumulate<Operand, kOut, kVectors>(packed + step * kPanel, kPanel, scalars, 1, out, count, step > 0);
      }
    }
  }

  int64_t panels, padded_rows, padded_dim, steps;
  RowInputs<Real> inputs{};

 private:
  Scalar* packed_panel(int64_t panel) const { return workspace_.at<Scalar>(packed_at_) + panel * steps * kPanel; }

  const SweepInputs& arg_;
  const Workspace& workspace_;
  size_t packed_at_, rows_at_, ids_at_, keys_at_, values_at_;
};
