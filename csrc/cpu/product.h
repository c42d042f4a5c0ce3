// The multiply-accumulate that does nearly all the work of the sweeps. Included inside a kernels_<isa>.cpp, after
// operands.h.
//
//     out[a][v] (+)= sum_{k < steps} vectors[k][v] * scalars[a][k]        a < kOut, v < kVectors SIMD vectors
//
// kOut x kVectors sums stay in registers; a step loads kVectors vectors and broadcasts kOut scalars. The first product
// of a sweep (cosines) has 16..64 embeddings in the vector and a few centres as scalars, the second (gradient) has a
// part of the embedding dimension in the vector and a few rows' or centres' weights as scalars. So neither needs the
// centres transposed: float32 centres are read where they lie.

template <class Operand, int kOut, int kVectors>
inline void multiply_accumulate(const typename Operand::Scalar* vectors, int64_t vector_stride,
                                const typename Operand::Scalar* const* scalars, int64_t scalar_stride,
                                typename Operand::Real* const* out, int64_t steps, bool add) {
  using Scalar = typename Operand::Scalar;
  using Vector = typename Simd<typename Operand::Real>::Vector;
  constexpr int kLanes = Operand::kLanes;
  Vector sum[kOut][kVectors];
#pragma GCC unroll 8
  for (int a = 0; a < kOut; ++a)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[a][v] = Vector{};
  const Scalar* scalar[kOut];
#pragma GCC unroll 8
  for (int a = 0; a < kOut; ++a) scalar[a] = scalars[a];
  for (int64_t k = 0; k < steps; ++k) {
    Vector vector[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) vector[v] = load<Vector>(vectors + k * vector_stride + v * kLanes);
#pragma GCC unroll 8
    for (int a = 0; a < kOut; ++a) {
      Scalar value;
      std::memcpy(&value, scalar[a] + k * scalar_stride, sizeof(value));  // a pair of bfloat16 may lie at any 2 bytes
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[a][v] = Operand::step(sum[a][v], vector[v], value);
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < kOut; ++a)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      // Added at the end, not carried along: each block of steps is summed by itself, which rounds less.
      if (add) sum[a][v] += load<Vector>(out[a] + v * kLanes);
      store(out[a] + v * kLanes, sum[a][v]);
    }
}

// multiply_accumulate for a run-time number of outputs, 1 <= count <= kMaxOut.
template <class Operand, int kMaxOut, int kVectors>
inline void multiply_accumulate_upto(int count, const typename Operand::Scalar* vectors, int64_t vector_stride,
                                     const typename Operand::Scalar* const* scalars, int64_t scalar_stride,
                                     typename Operand::Real* const* out, int64_t steps, bool add) {
  if constexpr (kMaxOut > 1) {
    if (count < kMaxOut) {
      multiply_accumulate_upto<Operand, kMaxOut - 1, kVectors>(count, vectors, vector_stride, scalars, scalar_stride,
                                                               out, steps, add);
      return;
    }
  }
  multiply_accumulate<Operand, kMaxOut, kVectors>(vectors, vector_stride, scalars, scalar_stride, out, steps, add);
}
