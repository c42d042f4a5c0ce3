// Which instruction set the CPU kernels use.
#pragma once

namespace attfc::cpu {

enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

// The best that this processor and this build have, at most ATTFC_CPU_CAPABILITY (generic, avx2, avx512, avx512_bf16)
// where that variable is set.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace attfc::cpu
