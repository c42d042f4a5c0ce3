// Chooses the instruction set of the CPU kernels at run time.
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef ATTFC_BUILDS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace attfc::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kGeneric};

// Asks the system for the matrix unit's registers, which it lends to processes that ask; false where there are none.
bool may_use_matrix_unit() {
#ifdef ATTFC_BUILDS_AMX
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBf16) || !(d & kTile)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of asm/prctl.h and the processor's manual
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::kAmx: return processor_has(Isa::kAvx512Bf16) && may_use_matrix_unit();
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
        std::string("attfc_cuda: ATTFC_CPU_CAPABILITY must be generic, avx2, avx512, avx512_bf16 or amx, got ") +
        wanted);
  return chosen;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx: return "amx";
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
