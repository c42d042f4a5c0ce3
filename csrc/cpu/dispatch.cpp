// The CPU kernels' entry points: each calls the one compiled for the instruction set in use.
#include "center_gradient.h"
#include "head_step.h"
#include "isa.h"
#include "sweep.h"

namespace attfc::cpu {

#define ATTFC_DECLARE_KERNELS(isa)                                                           \
  namespace isa {                                                                            \
  size_t sweep_workspace_bytes(const SweepArguments& arguments);                             \
  void sweep(const SweepArguments&, const ParallelFor&, void* workspace);                    \
  size_t center_gradient_workspace_bytes(const CenterGradientArguments& arguments);          \
  void center_gradient(const CenterGradientArguments&, const ParallelFor&, void* workspace); \
  size_t head_rows_workspace_bytes(const HeadRowsArguments& arguments);                      \
  void head_rows(const HeadRowsArguments&, const ParallelFor&, void* workspace);             \
  size_t row_gradients_workspace_bytes(const RowGradientArguments& arguments);               \
  void write_slots(const EnqueueArguments&, const int64_t* slots, const ParallelFor&);       \
  void row_gradients(const RowGradientArguments&, const ParallelFor&, void* workspace);      \
  }
ATTFC_DECLARE_KERNELS(generic)
#if defined(__x86_64__)
ATTFC_DECLARE_KERNELS(avx2)
ATTFC_DECLARE_KERNELS(avx512)
ATTFC_DECLARE_KERNELS(avx512_bf16)
#ifdef ATTFC_BUILDS_AMX
ATTFC_DECLARE_KERNELS(amx)
#define ATTFC_DISPATCH_AMX(call) return amx::call
#else
#define ATTFC_DISPATCH_AMX(call) break
#endif
#define ATTFC_DISPATCH(call)                         \
  switch (active_isa()) {                            \
    case Isa::kAmx: ATTFC_DISPATCH_AMX(call);        \
    case Isa::kAvx512Bf16: return avx512_bf16::call; \
    case Isa::kAvx512: return avx512::call;          \
    case Isa::kAvx2: return avx2::call;              \
    case Isa::kGeneric: break;                       \
  }                                                  \
  return generic::call
#else
#define ATTFC_DISPATCH(call) return generic::call
#endif

size_t sweep_workspace_bytes(const SweepArguments& arguments) { ATTFC_DISPATCH(sweep_workspace_bytes(arguments)); }

void sweep(const SweepArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  ATTFC_DISPATCH(sweep(arguments, parallel_for, workspace));
}

size_t center_gradient_workspace_bytes(const CenterGradientArguments& arguments) {
  ATTFC_DISPATCH(center_gradient_workspace_bytes(arguments));
}

void center_gradient(const CenterGradientArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  ATTFC_DISPATCH(center_gradient(arguments, parallel_for, workspace));
}

size_t head_rows_workspace_bytes(const HeadRowsArguments& arguments) {
  ATTFC_DISPATCH(head_rows_workspace_bytes(arguments));
}

void head_rows(const HeadRowsArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  ATTFC_DISPATCH(head_rows(arguments, parallel_for, workspace));
}

size_t row_gradients_workspace_bytes(const RowGradientArguments& arguments) {
  ATTFC_DISPATCH(row_gradients_workspace_bytes(arguments));
}

void row_gradients(const RowGradientArguments& arguments, const ParallelFor& parallel_for, void* workspace) {
  ATTFC_DISPATCH(row_gradients(arguments, parallel_for, workspace));
}

void write_slots(const EnqueueArguments& arguments, const int64_t* slots, const ParallelFor& parallel_for) {
  ATTFC_DISPATCH(write_slots(arguments, slots, parallel_for));
}

}  // namespace attfc::cpu
