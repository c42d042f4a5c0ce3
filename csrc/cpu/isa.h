// Which instruction set the CPU kernels use.
#pragma once

// Where the compiler knows the matrix unit and the system lends it out.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 13 : __GNUC__ >= 11)
#define ATTFC_BUILDS_AMX
#endif

namespace attfc::cpu {

enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best that this processor, its system and this build have, at most ATTFC_CPU_CAPABILITY (generic, avx2, avx512,
// avx512_bf16, amx) where that variable is set.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace attfc::cpu
