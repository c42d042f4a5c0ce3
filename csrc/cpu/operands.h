// The operand types of a sweep's two products: how inputs are read and results written, how the vector and the scalar
// side of a multiply-accumulate look. Included inside a kernels_<isa>.cpp, after simd.h.
//
// Both products have the form  out[a][v] += sum_k vector[k][v] * scalar[a][k]. One step along k may hold one number
// (FloatOperand, DoubleOperand) or a pair of bfloat16 (PairOperand, MatrixOperand).

struct VectorOperand {
  static constexpr bool kInMatrixUnit = false;
  static constexpr int kWholeNumbers = 2;  // the dimension is padded to a multiple of this, and of the lanes
  struct Unit {
    Unit() {}  // nothing to prepare
  };
};

struct FloatOperand : VectorOperand {
  using Scalar = float;  // what is broadcast
  using Real = float;    // what is accumulated
  static constexpr int kNumbersPerStep = 1;
  static constexpr int kLanes = Simd<float>::kLanes;
  ATTFC_HOST_DEVICE static VectorF step(VectorF sum, VectorF vector, Scalar scalar) { return sum + vector * scalar; }
};

struct DoubleOperand : VectorOperand {
  using Scalar = double;
  using Real = double;
  static constexpr int kNumbersPerStep = 1;
  static constexpr int kLanes = Simd<double>::kLanes;
  ATTFC_HOST_DEVICE static VectorD step(VectorD sum, VectorD vector, Scalar scalar) { return sum + vector * scalar; }
};

#ifdef ATTFC_HAS_BF16_DOT
struct PairOperand : VectorOperand {
  using Scalar = uint32_t;  // two bfloat16, the lower index in the lower half
  using Real = float;
  static constexpr int kNumbersPerStep = 2;
  static constexpr int kLanes = Simd<float>::kLanes;
  ATTFC_HOST_DEVICE static VectorF step(VectorF sum, VectorF vector, Scalar scalar) {
    const __m512i pairs = _mm512_set1_epi32(static_cast<int>(scalar));
    return (VectorF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)vector, (__m512bh)pairs);
  }
  // Lane by lane the pair (low, high), rounded to nearest even.
  ATTFC_HOST_DEVICE static VectorF pack(VectorF low, VectorF high) {
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (VectorF)_mm512_permutexvar_epi16(order, halves);
  }
  // The lanes as bfloat16 in their order, rounded to nearest even: pairs of neighbouring lanes.
  ATTFC_HOST_DEVICE static void store_narrow(uint16_t* to, VectorF value) {
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &narrow, sizeof(narrow));
  }
};
#endif
#ifdef ATTFC_HAS_MATRIX_UNIT
#include "matrix_operand.h"
#endif

// Inputs, by their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Calls `use` with a number of the type that the dtype names.
template <class Use>
auto with_input(Dtype dtype, const Use& use) {
  switch (dtype) {
    case Dtype::kFloat64: return use(double{});
    case Dtype::kBFloat16: return use(BFloat16{});
    case Dtype::kFloat16: return use(Half{});
    case Dtype::kFloat32: break;
  }
  return use(float{});
}

inline float to_real(float value) { return value; }
inline double to_real(double value) { return value; }
inline float to_real(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float to_real(Half value) {
  // Shift exponent and mantissa into place and rescale by 2^112: right for normals and subnormals alike.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFF) << 13;
  uint32_t bits;
  if ((value.bits & 0x7C00) == 0x7C00) {
    bits = magnitude | 0x7F800000u;
  } else {
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof(scaled));
    scaled *= 0x1p112f;
    std::memcpy(&bits, &scaled, sizeof(bits));
  }
  bits |= static_cast<uint32_t>(value.bits & 0x8000) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// The nearest number of the given type, ties to even.
template <class Input, class Real>
ATTFC_HOST_DEVICE Input from_real(Real value) {
  if constexpr (std::is_same_v<Input, BFloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(value == value ? rounded : 0x7FC0u)};
  } else if constexpr (std::is_same_v<Input, Half>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
    // Below 2^-14 the last place is 2^-24, whatever the exponent: adding 1/2 rounds to it, in float's own arithmetic.
    float absolute, shifted;
    std::memcpy(&absolute, &magnitude, sizeof(absolute));
    shifted = absolute + 0.5f;
    uint32_t subnormal;
    std::memcpy(&subnormal, &shifted, sizeof(subnormal));
    subnormal -= 0x3F000000u;
    const uint32_t normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
    uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= (143u << 23) ? 0x7C00u : half;  // 2^16 and beyond; rounding up to 2^16 carries into it
    half = magnitude > (255u << 23) ? 0x7E00u : half;
    return {static_cast<uint16_t>(half | sign)};
  } else {
    return value;
  }
}

// Which operand an input dtype is multiplied in.
template <class Input>
struct OperandOf {
  using Type = FloatOperand;
};
template <>
struct OperandOf<double> {
  using Type = DoubleOperand;
};
#if defined(ATTFC_HAS_MATRIX_UNIT)
template <>
struct OperandOf<BFloat16> {
  using Type = MatrixOperand;
};
#elif defined(ATTFC_HAS_BF16_DOT)
template <>
struct OperandOf<BFloat16> {
  using Type = PairOperand;
};
#endif
