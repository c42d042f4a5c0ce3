// Registers the operators with torch.library, their autocast rule, and the Python module that tells what was built.
// Fake kernels and autograd are registered in attfc_cuda/ops/autograd.py.
#include <ATen/autocast_mode.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "../cpu/isa.h"
#include "schemas.h"

namespace attfc {
namespace {

// Under autocast the two product operands take its dtype, like a matrix product's; labels and row values, which carry
// margins and logits, keep float32.
template <c10::DispatchKey kAutocast, c10::DeviceType kDevice>
NegativeLogSumExp negative_logsumexp_autocast(const at::Tensor& embeddings, const at::Tensor& centers,
                                              const at::Tensor& labels, const at::Tensor& center_labels,
                                              const std::optional<at::Tensor>& center_scale,
                                              const at::Tensor& row_values, double scale, double grad_tolerance,
                                              bool need_grad, bool need_moments) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(kDevice);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("attfc::negative_logsumexp", "")
                             .typed<decltype(negative_logsumexp_cpu)>();
  return op.call(at::autocast::cached_cast(dtype, embeddings, kDevice),
                 at::autocast::cached_cast(dtype, centers, kDevice), labels, center_labels, center_scale, row_values,
                 scale, grad_tolerance, need_grad, need_moments);
}

}  // namespace

TORCH_LIBRARY(attfc, library) {
  library.def(kNegativeLogSumExpSchema, {at::Tag::pt2_compliant_tag});
  library.def(kCenterGradientSchema, {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(attfc, CPU, library) {
  library.impl("negative_logsumexp", negative_logsumexp_cpu);
  library.impl("center_gradient", center_gradient_cpu);
}

TORCH_LIBRARY_IMPL(attfc, AutocastCPU, library) {
  library.impl("negative_logsumexp", negative_logsumexp_autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(attfc, AutocastCUDA, library) {
  library.impl("negative_logsumexp",
               negative_logsumexp_autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}

}  // namespace attfc

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "attfc_cuda's compiled operators; importing it registers torch.ops.attfc.*";
  module.def("build_config", [] {
    pybind11::dict config;
    config["compiler"] = __VERSION__;
    config["cpu_capability"] = attfc::cpu::isa_name(attfc::cpu::active_isa());
    config["openmp"] =
#ifdef _OPENMP
        true;
#else
        false;
#endif
    return config;
  });
}
