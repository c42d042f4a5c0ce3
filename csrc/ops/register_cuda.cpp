// Registers the hand-written CUDA kernels beside the operators of register.cpp, under their own names: which backend a
// call uses is chosen before the operator is called (attfc_cuda/ops/backend.py), where a named backend can be refused
// and where the choice becomes a constant of a compiled graph. attfc::negative_logsumexp itself runs on a CUDA device
// through the Triton kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <string>

#include "../cuda/center_gradient.h"
#include "../cuda/sweep.h"
#include "cuda_device.h"
#include "cuda_ops.h"

// The build's own words about itself (attfc_cuda/ops/build.py) as text; a list of architectures has commas.
#define ATTFC_QUOTED(...) #__VA_ARGS__
#define ATTFC_TEXT(...) ATTFC_QUOTED(__VA_ARGS__)

namespace attfc {
namespace {

// nullopt, or why the kernels cannot take tensors of this dtype and D on such a device.
std::optional<std::string> why_not(int compute_capability, int shared_bytes, const std::string& dtype, int64_t dim) {
  const cuda::DeviceLimits limits{compute_capability, shared_bytes, 1};
  SweepInputs inputs{};
  inputs.dtype = dtype == "bfloat16" ? Dtype::kBFloat16 : dtype == "float16" ? Dtype::kFloat16 : Dtype::kFloat32;
  inputs.num_rows = inputs.num_centers = 1;
  inputs.dim = inputs.embedding_stride = inputs.center_stride = dim;
  cuda::SweepArguments sweep{};
  cuda::CenterGradientArguments gradient{};
  static_cast<SweepInputs&>(sweep) = static_cast<SweepInputs&>(gradient) = inputs;
  for (const char* reason : {cuda::why_not(limits, sweep), cuda::why_not(limits, gradient)}) {
    if (reason != nullptr) return reason;
  }
  return std::nullopt;
}

// nullopt: such a device runs the sweep in two passes; else why in one.
std::optional<std::string> why_one_pass(int compute_capability, int shared_bytes, double grad_tolerance) {
  cuda::SweepArguments sweep{};
  sweep.num_rows = sweep.num_centers = 1;
  sweep.need_grad = true;
  sweep.grad_tolerance = static_cast<float>(grad_tolerance);
  const char* reason = cuda::why_one_pass({compute_capability, shared_bytes, 1, ATTFC_CUDA_HAS_SM90A != 0}, sweep);
  return reason != nullptr ? std::optional<std::string>(reason) : std::nullopt;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(attfc, library) {
  library.def(cuda_schema(kNegativeLogSumExpSchema).c_str(), {at::Tag::pt2_compliant_tag});
  library.def(cuda_schema(kCenterGradientSchema).c_str(), {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(attfc, CUDA, library) {
  library.impl("negative_logsumexp_cuda", negative_logsumexp_cuda);
  library.impl("center_gradient_cuda", center_gradient_cuda);
}

}  // namespace attfc

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "attfc_cuda's CUDA operators; importing it registers torch.ops.attfc.*_cuda";
  module.def("build_config", [] {
    pybind11::dict config;
    config["compiler"] = __VERSION__;
    config["toolkit"] = ATTFC_TEXT(ATTFC_CUDA_TOOLKIT);
    config["architectures"] = ATTFC_TEXT(ATTFC_CUDA_ARCHITECTURES);
    return config;
  });
  // (compute capability, shared memory of a block in bytes) of a device
  module.def("device_limits", [](int index) {
    const attfc::cuda::DeviceLimits& limits = attfc::device_limits(index);
    return std::pair(limits.compute_capability, limits.shared_bytes);
  });
  module.def("why_not", attfc::why_not, pybind11::arg("compute_capability"), pybind11::arg("shared_bytes"),
             pybind11::arg("dtype"), pybind11::arg("dim"));
  module.def("why_one_pass", attfc::why_one_pass, pybind11::arg("compute_capability"), pybind11::arg("shared_bytes"),
             pybind11::arg("grad_tolerance"));
}
