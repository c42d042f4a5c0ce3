// The operators of attfc_cuda: their schemas (the table of contents) and, for readers of C++, their signatures.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace attfc {

// lse, hard_count, max_cosine, omitted_mass, unit_grad, moments; see attfc_cuda/ops/autograd.py for what each holds.
using NegativeLogSumExp = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

constexpr const char* kNegativeLogSumExpSchema =
    "negative_logsumexp(Tensor embeddings, Tensor centers, Tensor labels, Tensor center_labels, Tensor? center_scale, "
    "Tensor row_values, float scale, float grad_tolerance, bool need_grad, bool need_moments) "
    "-> (Tensor lse, Tensor hard_count, Tensor max_cosine, Tensor omitted_mass, Tensor unit_grad, Tensor moments)";

NegativeLogSumExp negative_logsumexp_cpu(const at::Tensor& embeddings, const at::Tensor& centers,
                                         const at::Tensor& labels, const at::Tensor& center_labels,
                                         const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                                         double scale, double grad_tolerance, bool need_grad, bool need_moments);

// d (sum_b grad_lse_b lse_b + target_grad_b c_b,own) / d centers; see attfc_cuda/ops/autograd.py.
constexpr const char* kCenterGradientSchema =
    "center_gradient(Tensor grad_lse, Tensor lse, Tensor? target_grad, Tensor embeddings, Tensor centers, "
    "Tensor labels, Tensor center_labels, Tensor? center_scale, Tensor row_values, float scale, "
    " float grad_tolerance) -> Tensor";

at::Tensor center_gradient_cpu(const at::Tensor& grad_lse, const at::Tensor& lse,
                               const std::optional<at::Tensor>& target_grad, const at::Tensor& embeddings,
                               const at::Tensor& centers, const at::Tensor& labels, const at::Tensor& center_labels,
                               const std::optional<at::Tensor>& center_scale, const at::Tensor& row_values,
                               double scale, double grad_tolerance);

}  // namespace attfc
