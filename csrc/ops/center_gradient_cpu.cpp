// attfc::center_gradient on the CPU: checks, output, workspace and torch's threads around csrc/cpu/center_gradient.h.
#include <ATen/ops/empty.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../cpu/center_gradient.h"
#include "operands.h"
#include "parallel_for.h"
#include "schemas.h"

namespace attfc {
namespace {

// A gradient of N x D is fresh memory in every step, and its page faults would take a tenth of the sweep. Large blocks
// are mapped for the tensor alone (glibc: from 32 MiB on), so nothing else is affected; where the system refuses,
// nothing changes.
void ask_for_huge_pages([[maybe_unused]] const at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20, kLarge = uintptr_t{32} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr()), end = begin + tensor.nbytes();
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (tensor.nbytes() >= kLarge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

at::Tensor center_gradient_cpu(const at::Tensor& grad_lse, const at::Tensor& lse,
                               const std::optional<at::Tensor>& target_grad, const at::Tensor& embeddings,
                               const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& center_labels,
                               const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                               double scale, double grad_tolerance) {
  Operands operands("center_gradient", embeddings, centers, labels, center_labels, center_scale, row_values);
  const int64_t rows = operands.inputs.num_rows;
  at::Tensor gradient = at::empty(centers.sizes(), centers.options().memory_format(at::MemoryFormat::Contiguous));
  ask_for_huge_pages(gradient);
  const cpu::CenterGradientArguments arguments{
      operands.inputs,
      scale,
      grad_tolerance,
      operands.values("grad_lse", grad_lse, rows),
      operands.values("lse", lse, rows),
      operands.values("target_grad", target_grad, rows),
      gradient.data_ptr(),
  };
  const at::Tensor workspace = at::empty({static_cast<int64_t>(cpu::center_gradient_workspace_bytes(arguments))},
                                         centers.options().dtype(at::kByte));
  cpu::center_gradient(arguments, parallel_for_torch, workspace.data_ptr());
  return gradient;
}

}  // namespace attfc
