// From cosines to probabilities and row sums: the B x S work that is not a product. Rows lie in SIMD lanes, so nothing
// is reduced across a vector. Included inside a kernels_<isa>.cpp, after row_panels.h.

// The running sums of a task's rows: PartialLse (../partial_lse.h), a field an array.
template <class Real, int kRows>
struct RowSums {
  using Int = typename Simd<Real>::Int;

  Real reference[kRows];
  Real sum[kRows], carry[kRows];  // sum - carry is the compensated sum: thousands of tiles, one rounding
  Real moment_quad[kRows], moment_lin[kRows], moment_const[kRows];
  Real omitted[kRows];
  Real target_mass[kRows];  // 2^(target - reference), or 0 without a target, shared out evenly over the splits
  Real max_cosine[kRows];
  Int hard_count[kRows];

  void start(int row, Real initial_reference, Real target) {
    reference[row] = initial_reference;
    sum[row] = carry[row] = moment_quad[row] = moment_lin[row] = moment_const[row] = omitted[row] = 0;
    target_mass[row] = target;
    max_cosine[row] = -std::numeric_limits<Real>::infinity();
    hard_count[row] = 0;
  }

  // Measures the row against another reference; returns the factor for its gradient accumulator.
  Real move(int row, Real to, Real target_logit, Real target_share) {
    const Real factor = reference[row] == to ? Real(1) : std::exp2(reference[row] - to);
    reference[row] = to;
    for (Real* field : {sum, carry, moment_quad, moment_lin, moment_const, omitted}) field[row] *= factor;
    target_mass[row] = target_share * std::exp2(target_logit - to);
    return factor;
  }

  PartialLse<double> partial(int row) const {
    return {reference[row] * kLn2, static_cast<double>(sum[row]) - carry[row],
            moment_quad[row],      moment_lin[row],
            moment_const[row],     omitted[row],
            max_cosine[row],       hard_count[row]};
  }
};

// The sums of one vector of rows over one tile.
template <class Real>
struct TileSums {
  using Vector = typename Simd<Real>::Vector;
  Vector sum, moment_quad, moment_lin, moment_const, max_modulated, max_cosine;
  typename Simd<Real>::Mask hard;  // minus the count
};

// Adds a tile's sums to the rows from `row` on; true in the lanes that need the tile's gradient.
template <bool kMoments, class Real, int kRows>
typename Simd<Real>::Mask add_tile(RowSums<Real, kRows>& rows, int row, const TileSums<Real>& tile, Real tolerance) {
  using Vector = typename Simd<Real>::Vector;
  using Mask = typename Simd<Real>::Mask;
  const auto add = [row](Real* field, Vector value) { store(field + row, load<Vector>(field + row) + value); };
  const Vector before = load<Vector>(rows.sum + row);
  const Vector value = tile.sum - load<Vector>(rows.carry + row);
  const Vector sum = before + value;
  store(rows.sum + row, sum);
  store(rows.carry + row, (sum - before) - value);
  store(rows.max_cosine + row, maximum(tile.max_cosine, load<Vector>(rows.max_cosine + row)));
  store(rows.hard_count + row, load<Mask>(rows.hard_count + row) - tile.hard);
  if constexpr (kMoments) {
    add(rows.moment_quad, tile.moment_quad);
    add(rows.moment_lin, tile.moment_lin);
    add(rows.moment_const, tile.moment_const);
  }
  const Vector omitted = load<Vector>(rows.omitted + row);
  const Mask omit = may_omit(omitted, tile.sum, sum, load<Vector>(rows.target_mass + row), Vector{} + tolerance);
  store(rows.omitted + row, omitted + select(omit, tile.sum));
  return ~omit;
}

// From the cosines of kCenters centres with one vector of rows (`cosine`, a column every `stride`) to p N'(c)
// center_scale, the second product's scalars, in `weight`; `row` indexes `inputs`, `reference` are the rows'
// references.
template <bool kModulated, bool kMoments, class Input, int kCenters>
TileSums<typename OperandOf<Input>::Type::Real> weigh_tile(
    const Tile<Input, kCenters>& tile, const RowInputs<typename OperandOf<Input>::Type::Real>& inputs, int64_t row,
    typename OperandOf<Input>::Type::Real scale2, const typename OperandOf<Input>::Type::Real* reference,
    const typename OperandOf<Input>::Type::Real* cosine, typename OperandOf<Input>::Type::Real* weight,
    int64_t stride) {
  using Operand = typename OperandOf<Input>::Type;
  using Real = typename Operand::Real;
  using Vector = typename Simd<Real>::Vector;
  using Mask = typename Simd<Real>::Mask;
  const Vector shift = load<Vector>(reference), scale = Vector{} + scale2;
  const Vector lowest = Vector{} - std::numeric_limits<Real>::infinity();
  RowModulation<Vector> modulation{};
  if constexpr (kModulated) modulation = inputs.template modulation<Vector>(row);
  TileSums<Real> sums{{}, {}, {}, {}, lowest, lowest, {}};
  const auto column = [&](int j) {
    const auto id = tile.id[j];
    if (id == kEmptySlot) return Vector{};
    Vector c = load<Vector>(cosine + j * stride), slope = Vector{} + Real(1);
    if (tile.scale) c *= slope = Vector{} + tile.scale[j];
    Vector modulated = c, derivative{};
    if constexpr (kModulated) modulate(modulation, c, modulated, derivative);
    Vector probability = exp2_below_127(modulated * scale - shift);
    Vector seen = c;
    if (id >= 0) {  // some row's own class: as if it were not there
      const Mask ids = load<Mask>(inputs.id + row);
      probability = ids == id ? Vector{} : probability;
      seen = ids == id ? lowest : c;
      modulated = ids == id ? lowest : modulated;
    }
    sums.sum += probability;
    sums.max_cosine = maximum(seen, sums.max_cosine);
    if constexpr (!kModulated) return tile.scale ? probability * slope : probability;
    sums.max_modulated = maximum(modulated, sums.max_modulated);
    sums.hard += seen > modulation.threshold;
    if constexpr (kMoments) {
      const Vector constant = c > modulation.threshold ? probability : Vector{}, linear = constant * c;
      sums.moment_const += constant;
      sums.moment_lin += linear;
      sums.moment_quad += linear * c;
    }
    return tile.scale ? probability * derivative * slope : probability * derivative;
  };
  for (int j = 0; j < kCenters; j += Operand::kNumbersPerStep) {
    if constexpr (Operand::kNumbersPerStep == 2)
      store(weight + j / 2 * stride, Operand::pack(column(j), column(j + 1)));
    else
      store(weight + j * stride, column(j));
  }
  if constexpr (!kModulated) sums.max_modulated = sums.max_cosine;
  return sums;
}
