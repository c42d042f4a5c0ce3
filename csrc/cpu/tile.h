// Inputs of a sweep as its products want them: class ids, packed vectors, tiles of centres. Included inside a
// kernels_<isa>.cpp, after operands.h.

// Class ids inside one call: the batch's distinct labels are 0, 1, ...; anything else is one of these.
constexpr int kNotInBatch = -1, kEmptySlot = -2, kIgnoredRow = -3;

// The batch's labels numbered, in an open-addressing table on memory that the caller provides.
template <class Int>
class ClassIds {
 public:
  static int64_t table_size(int64_t rows) {
    int64_t size = 16;
    while (size < 2 * rows) size *= 2;
    return size;
  }

  ClassIds(int64_t* keys, Int* values, int64_t size) : keys_(keys), values_(values), size_(size) {}

  // Fills `ids` [padded_rows]; call once, before center_id().
  void number(const int64_t* labels, int64_t rows, int64_t padded_rows, Int* ids) {
    std::fill(keys_, keys_ + size_, int64_t{-1});
    std::fill(values_, values_ + size_, Int{kNotInBatch});
    Int count = 0;
    for (int64_t row = 0; row < padded_rows; ++row) {
      ids[row] = kIgnoredRow;
      if (row >= rows || labels[row] < 0) continue;
      const int64_t slot = find(labels[row]);
      if (keys_[slot] < 0) {
        keys_[slot] = labels[row];
        values_[slot] = count++;
      }
      ids[row] = values_[slot];
    }
  }

  Int center_id(int64_t label) const { return label < 0 ? Int{kEmptySlot} : values_[find(label)]; }

 private:
  // The slot of the label, or the free slot where it would stand.
  int64_t find(int64_t label) const {
    const uint64_t hash = static_cast<uint64_t>(label) * 0x9E3779B97F4A7C15ull;
    int64_t slot = static_cast<int64_t>((hash >> 32) & static_cast<uint64_t>(size_ - 1));
    while (keys_[slot] != label && keys_[slot] >= 0) slot = (slot + 1) & (size_ - 1);
    return slot;
  }

  int64_t* keys_;
  Int* values_;
  int64_t size_;
};

// Writes `dim` numbers as product steps, then zeros up to `steps`, `stride` scalars apart.
template <class Input>
void pack_vector(const Input* from, int64_t dim, typename OperandOf<Input>::Type::Scalar* to, int64_t steps,
                 int64_t stride) {
  if constexpr (OperandOf<Input>::Type::kNumbersPerStep == 2) {
    for (int64_t step = 0; step < steps; ++step) {
      uint16_t pair[2] = {0, 0};
      for (int half = 0; half < 2; ++half)
        if (2 * step + half < dim) pair[half] = from[2 * step + half].bits;
      std::memcpy(to + step * stride, pair, sizeof(pair));
    }
  } else {
    for (int64_t step = 0; step < dim; ++step) to[step * stride] = to_real(from[step]);
    for (int64_t step = dim; step < steps; ++step) to[step * stride] = 0;
  }
}

// kCenters centres, ready for both products: in place where their memory already has the right form, else copied.
template <class Input, int kCenters>
class Tile {
  using Operand = typename OperandOf<Input>::Type;
  using Scalar = typename Operand::Scalar;
  using Real = typename Operand::Real;
  using Int = typename Simd<Real>::Int;
  static constexpr bool kPairs = Operand::kNumbersPerStep == 2;

 public:
  // with_vectors: vectors() will be called.
  static int64_t scratch_scalars(int64_t padded_dim, bool with_vectors) {
    const bool interleaved = kPairs && with_vectors;
    return kCenters * (padded_dim / Operand::kNumbersPerStep) + (interleaved ? kCenters / 2 * padded_dim : 0);
  }

  Tile(Scalar* scratch, int64_t padded_dim)
      : padded_dim_(padded_dim),
        steps_(padded_dim / Operand::kNumbersPerStep),
        packed_(scratch),
        interleaved_(scratch + kCenters * steps_) {}

  // Makes centres first ... first + kCenters - 1 the tile; false when all their slots are empty or past the end.
  bool open(const SweepInputs& arguments, const ClassIds<Int>& ids, int64_t first) {
    const int64_t count = std::min<int64_t>(kCenters, arguments.num_centers - first);
    int64_t filled = 0;
    for (int64_t j = 0; j < kCenters; ++j) {
      id[j] = j < count ? ids.center_id(arguments.center_labels[first + j]) : Int{kEmptySlot};
      filled += id[j] != kEmptySlot;
    }
    if (filled == 0) return false;
    scale = arguments.center_scale ? static_cast<const Real*>(arguments.center_scale) + first : nullptr;
    constexpr bool kSameForm = sizeof(Input) * Operand::kNumbersPerStep == sizeof(Scalar);
    const bool in_place = kSameForm && filled == kCenters && padded_dim_ == arguments.dim;
    for (int64_t j = 0; j < kCenters; ++j) {
      const Input* from = static_cast<const Input*>(arguments.centers) + (first + j) * arguments.center_stride;
      if (in_place) {
        center[j] = reinterpret_cast<const Scalar*>(from);
        continue;
      }
      // An empty slot becomes zeros: its content may be anything, and 0 * NaN is not 0.
      Scalar* to = packed_ + j * steps_;
      if (id[j] == kEmptySlot)
        std::fill(to, to + steps_, Scalar(0));
      else
        pack_vector(from, arguments.dim, to, steps_, 1);
      center[j] = to;
    }
    center_stride_bytes =
        in_place ? arguments.center_stride * int64_t{sizeof(Input)} : steps_ * int64_t{sizeof(Scalar)};
    vectors_ = kPairs ? nullptr : center[0];
    stride_ = kPairs ? padded_dim_ : in_place ? arguments.center_stride : steps_;
    return true;
  }

  // The vector side of the second product, made when first asked for: centre after centre, or, in pairs, the numbers
  // (w[2i][d], w[2i + 1][d]) side by side for each d.
  const Scalar* vectors() {
    if constexpr (kPairs) {
      if (!vectors_) interleave();
    }
    return vectors_;
  }
  int64_t vector_stride() const { return stride_; }

  const Scalar* center[kCenters];  // the scalar side of the first product: step k of each centre
  int64_t center_stride_bytes;     // from centre to centre
  Int id[kCenters];
  const Real* scale;  // what the cosines of each centre are multiplied by, or null: 1

 private:
  void interleave() {
    for (int64_t pair = 0; pair < kCenters / 2; ++pair) {
      const Scalar *first = center[2 * pair], *second = center[2 * pair + 1];
      Scalar* to = interleaved_ + pair * padded_dim_;
      for (int64_t step = 0; step < steps_; ++step) {
        Scalar a, b;
        std::memcpy(&a, first + step, sizeof(a));
        std::memcpy(&b, second + step, sizeof(b));
        to[2 * step] = (a & 0xFFFF) | (b << 16);
        to[2 * step + 1] = (a >> 16) | (b & 0xFFFF0000u);
      }
    }
    vectors_ = interleaved_;
  }

  int64_t padded_dim_, steps_;
  Scalar *packed_, *interleaved_;
  const Scalar* vectors_ = nullptr;
  int64_t stride_ = 0;
};
