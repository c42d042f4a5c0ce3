// SIMD vectors for one instruction set, on the compiler's vector extensions: portable C++ that becomes AVX-512, AVX2,
// SSE or NEON by the vector width alone. Included inside a kernels_<isa>.cpp, which sets ATTFC_SIMD_BYTES, the
// target and the namespace.

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  using Int = int32_t;
  static constexpr int kLanes = ATTFC_SIMD_BYTES / 4;
  typedef float Vector __attribute__((vector_size(ATTFC_SIMD_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(ATTFC_SIMD_BYTES)));
};

template <>
struct Simd<double> {
  using Int = int64_t;
  static constexpr int kLanes = ATTFC_SIMD_BYTES / 8;
  typedef double Vector __attribute__((vector_size(ATTFC_SIMD_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(ATTFC_SIMD_BYTES)));
};

using VectorF = Simd<float>::Vector;
using MaskF = Simd<float>::Mask;
using VectorD = Simd<double>::Vector;

template <class Vector>
ATTFC_HOST_DEVICE Vector maximum(Vector a, Vector b) {
  return a > b ? a : b;
}

// The same bits as another vector type of the same size.
template <class To, class From>
ATTFC_HOST_DEVICE To reinterpret_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return (To)from;
}

template <class Vector, class Real>
ATTFC_HOST_DEVICE Vector load(const Real* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));  // any alignment
  return value;
}

template <class Vector, class Real>
ATTFC_HOST_DEVICE void store(Real* to, Vector value) {
  std::memcpy(to, &value, sizeof(value));
}

// The value where the mask's lane is set, 0 elsewhere.
template <class Mask, class Vector>
ATTFC_HOST_DEVICE Vector select(Mask mask, Vector value) {
  return reinterpret_bits<Vector>(reinterpret_bits<Mask>(value) & mask);
}

template <class Mask>
ATTFC_HOST_DEVICE bool any(Mask mask) {
  uint64_t words[sizeof(Mask) / sizeof(uint64_t)], together = 0;
  std::memcpy(words, &mask, sizeof(mask));
  for (uint64_t word : words) together |= word;
  return together != 0;
}

// 2^x for x < 127 within 2.5e-7 relative, 0 for x < -126.5, NaN for NaN; meaningless (but harmless) for greater x.
// x = n + r with |r| <= 1/2; 2^r by a polynomial of least greatest relative error, 9.4e-8; n goes into the exponent
// bits.
ATTFC_HOST_DEVICE VectorF exp2_below_127(VectorF x) {
  // 1.5 * 2^23 + 127: adding it rounds to an integer, whose biased exponent n + 127 is then the sum's low bits.
  constexpr float kRound = 12583039.0f;
  const VectorF lowest = VectorF{} - 127.0f;
  const VectorF bounded = x < lowest ? lowest : x;
  const VectorF shifted = bounded + kRound;
  const VectorF r = bounded - (shifted - kRound);
  VectorF p = r * 0.00132695353f + 0.00967129227f;
  p = p * r + 0.0555071086f;
  p = p * r + 0.240222469f;
  p = p * r + 0.693147004f;
  p = p * r + 1.0f;
  return p * reinterpret_bits<VectorF>(reinterpret_bits<MaskF>(shifted) << 23);
}

// float64 is for checking the others, not for speed.
ATTFC_HOST_DEVICE VectorD exp2_below_127(VectorD x) {
  VectorD result;
  for (int lane = 0; lane < Simd<double>::kLanes; ++lane) result[lane] = std::exp2(x[lane]);
  return result;
}
