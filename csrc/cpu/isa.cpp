// Chooses the instruction set of the CPU kernels at run time.
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace attfc::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kGeneric};

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::kAvx512Bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
    case Isa::kAvx512: return avx512;
    case Isa::kAvx2: return avx2;
    case Isa::kGeneric: return true;
  }
#endif
  return isa == Isa::kGeneric;
}

Isa choose_isa() {
  const char* wanted = std::getenv("ATTFC_CPU_CAPABILITY");
  const bool limited = wanted != nullptr && *wanted != '\0';
  bool allowed = !limited, known = !limited;
  Isa chosen = Isa::kGeneric;
  for (Isa isa : kAll) {
    if (limited && std::strcmp(wanted, isa_name(isa)) == 0) allowed = known = true;
    if (allowed && chosen == Isa::kGeneric && processor_has(isa)) chosen = isa;
  }
  if (!known)
    throw std::invalid_argument(
        std::string("attfc_cuda: ATTFC_CPU_CAPABILITY must be generic, avx2, avx512 or avx512_bf16, got ") + wanted);
  return chosen;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx2: return "avx2";
    case Isa::kGeneric: return "generic";
  }
  return "unknown";
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace attfc::cpu
