// The modulated cosine and its derivative: the one definition that the CPU sweep, the CUDA sweep and their tests share.
//
//     hard = c > threshold                      (the caller has already excluded the own class and empty slots)
//     N(c) = quad c^2 + lin c + const   if hard else c
//     N'(c) = 2 quad c + lin            if hard else 1
//
// `Value` is float or double, or a compiler's SIMD vector of them.
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define ATTFC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ATTFC_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace attfc {

template <class Value>
struct RowModulation {
  Value threshold, quad, lin, constant;
};

// Of a row that leaves its negatives alone.
template <class Value>
ATTFC_HOST_DEVICE RowModulation<Value> no_modulation() {
  return {static_cast<Value>(INFINITY), 0, 0, 0};
}

// N(c) and N'(c) of a negative. The comparison stands inside each selection because compilers turn that form, not a
// stored vector mask, into one masked instruction.
template <class Value>
ATTFC_HOST_DEVICE void modulate(const RowModulation<Value>& row, Value cosine, Value& modulated, Value& derivative) {
  const Value bent = (row.quad * cosine + row.lin) * cosine + row.constant;
  const Value slope = (row.quad + row.quad) * cosine + row.lin;
  modulated = cosine > row.threshold ? bent : cosine;
  derivative = cosine > row.threshold ? slope : Value{} + 1;
}

}  // namespace attfc
