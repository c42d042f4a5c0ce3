// The CPU kernels compiled for one x86-64 target. Included once, by a kernels_<isa>.cpp, which sets ATTFC_ISA (its
// namespace), ATTFC_TARGET (the compiler's names of the instructions) and what kernels_isa.h wants.
#include "isa_includes.h"
#include <immintrin.h>

#define ATTFC_PRAGMA(text) _Pragma(#text)
// After the standard headers, so that no function that other files share is compiled for this target.
#ifdef __clang__
#define ATTFC_COMPILE_FOR(target_names) \
  ATTFC_PRAGMA(clang attribute push(__attribute__((target(target_names))), apply_to = function))
#else
#define ATTFC_COMPILE_FOR(target_names) ATTFC_PRAGMA(GCC target(target_names))
#endif
ATTFC_COMPILE_FOR(ATTFC_TARGET)

namespace attfc::cpu::ATTFC_ISA {
#include "kernels_isa.h"
}  // namespace attfc::cpu::ATTFC_ISA

#ifdef __clang__
#pragma clang attribute pop
#endif
