// The modulated cosine and its derivative: the one definition that the CPU sweep, the CUDA sweep and their tests share.
//
//     hard = c > threshold                      (the caller has already excluded the own class and empty slots)
//     N(c) = quad c^2 + lin c + const   if hard else c
//     N'(c) = 2 quad c + lin            if hard else 1
//
// `Value` is float or double, or a compiler's SIMD vector of them with `Mask` its vector of all-ones or all-zeros lanes.
#pragma once

#ifdef __CUDACC__
#define ATTFC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ATTFC_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace attfc {

template <class Mask, class Value>
ATTFC_HOST_DEVICE Value select(Mask mask, Value a, Value b) {
  return mask ? a : b;
}

template <class Value>
struct RowModulation {
  Value threshold, quad, lin, constant;
};

// N(c) and N'(c), given whether the negative is hard.
template <class Value, class Mask>
ATTFC_HOST_DEVICE void modulate(const RowModulation<Value>& row, Value cosine, Mask hard, Value& modulated,
                                Value& derivative) {
  const Value bent = (row.quad * cosine + row.lin) * cosine + row.constant;
  const Value slope = (row.quad + row.quad) * cosine + row.lin;
  modulated = select(hard, bent, cosine);
  derivative = select(hard, slope, Value{} + 1);
}

}  // namespace attfc
