// The centre gradient in plain float64 loops, with the error that each element may have: derived from the 16-bit
// rounding of G and of the result, float32 rounding of cosines, logits and sums, and what the tolerance lets out.
#pragma once

#include "csrc/cuda/center_gradient.h"
#include "sweep_oracle.h"

namespace attfc::testing {

// What a centre gradient is asked for; rows, centres, modulation and the device are those of the sweep.
struct CenterGradientCase : SweepCase {
  CenterGradientCase() { scaled = true; }
  bool with_target = true;
  float upstream = 1;      // size of grad_lse and target_grad
  float weight_scale = 0;  // 0: null
};

struct CenterGradientData : SweepData {
  std::vector<float> lse, grad_lse, target_grad;
};

inline double logit_of(const SweepCase& c, const SweepData& data, int64_t row, double cosine, double& slope) {
  const auto b = static_cast<size_t>(row);
  const bool hard = c.modulated && cosine > data.threshold[b];
  slope = hard ? 2.0 * data.quad[b] * cosine + data.lin[b] : 1.0;
  const double bent = (data.quad[b] * cosine + data.lin[b]) * cosine + data.constant[b];
  return static_cast<double>(c.scale) * (hard ? bent : cosine);
}

// Adds lse and random upstream gradients.
inline CenterGradientData with_upstream(const CenterGradientCase& c, SweepData sweep) {
  CenterGradientData data;
  static_cast<SweepData&>(data) = std::move(sweep);
  std::mt19937_64 random(c.data_seed + 2000);
  std::normal_distribution<float> normal;
  for (int64_t row = 0; row < c.rows; ++row) {
    const bool ignored = data.labels[static_cast<size_t>(row)] < 0;
    std::vector<double> logits;
    double largest = -INFINITY, slope;
    for (int64_t j = 0; j < c.centers; ++j) {
      if (!is_valid(data, row, j)) continue;
      logits.push_back(logit_of(c, data, row, cosine_of(c, data, row, j), slope));
      largest = std::max(largest, logits.back());
    }
    double sum = 0;
    for (double logit : logits) sum += std::exp(logit - largest);
    data.lse.push_back(ignored ? NAN : logits.empty() ? -INFINITY : static_cast<float>(largest + std::log(sum)));
    const float by_lse = c.upstream * normal(random), by_target = c.upstream * c.scale * normal(random);
    data.grad_lse.push_back(ignored ? NAN : by_lse);
    data.target_grad.push_back(ignored ? NAN : by_target);
  }
  for (auto* each : {&data.lse, &data.grad_lse, &data.target_grad}) each->shrink_to_fit();
  return data;
}

inline CenterGradientData make_center_data(const CenterGradientCase& c) { return with_upstream(c, make_data(c)); }

inline cuda::CenterGradientArguments center_arguments(const CenterGradientCase& c, const CenterGradientData& data,
                                                      std::vector<uint16_t>& out) {
  cuda::CenterGradientArguments a{};
  static_cast<SweepInputs&>(a) = inputs_of(c, data);
  a.grad_lse = data.grad_lse.data();
  a.lse = data.lse.data();
  a.target_grad = data_or_null(data.target_grad, c.with_target);
  a.scale = c.scale;
  a.grad_tolerance = c.tolerance;
  a.weight_scale = c.weight_scale != 0 ? &c.weight_scale : nullptr;
  a.center_grad = out.data();
  return a;
}

inline cuda::DeviceLimits limits(const SweepCase& c) {
  return {c.compute_capability, c.shared_bytes, c.multiprocessors};
}

// The gradient's bits; NaN wherever the kernel wrote nothing.
inline std::vector<uint16_t> run_center_gradient(const CenterGradientCase& c, const CenterGradientData& data) {
  std::vector<uint16_t> out(static_cast<size_t>(c.centers * c.dim), 0x7fff);
  const cuda::CenterGradientArguments arguments = center_arguments(c, data, out);
  const char* reason = cuda::why_not(limits(c), arguments);
  CHECK(reason == nullptr, "%s", reason);
  const cuda::CenterGradientPlan plan = cuda::plan_center_gradient(limits(c), arguments);
  std::vector<float> workspace(plan.workspace_bytes / sizeof(float), NAN);
  const char* error = cuda::launch_center_gradient(plan, arguments, workspace.data(), nullptr);
  CHECK(error == nullptr, "%s", error);
  return out;
}

// Checks every element of `out`. Tolerance above 0: a row's share in a block of centres may be missing, but only where
// its mass is as small as the tolerance says and none of the block is of the row's class.
inline void check_center_gradient(const CenterGradientCase& c, const CenterGradientData& data,
                                  const std::vector<uint16_t>& out) {
  const bool half = c.dtype == Dtype::kFloat16;
  const double u = half ? 0x1p-11 : 0x1p-8, cosine_error = c.dim / 16 * 0x1p-24 * 2 + (c.scaled ? 0x1p-24 : 0);
  const double tiny = half ? 0x1p-25 / (c.weight_scale != 0 ? c.weight_scale : 1) : 0;
  const double sums = 0x1p-24 * static_cast<double>((c.rows + 31) / 16);
  std::vector<uint16_t> ignored(1);
  const cuda::CenterGradientPlan plan = cuda::plan_center_gradient(limits(c), center_arguments(c, data, ignored));
  const auto dim = static_cast<size_t>(c.dim);
  for (int64_t first = 0; first < c.centers; first += plan.centers_per_block) {
    const int64_t end = std::min(c.centers, first + plan.centers_per_block);
    const auto count = static_cast<size_t>(end - first);
    std::vector<double> sum(count * dim), error(count * dim);
    for (int64_t row = 0; row < c.rows; ++row) {
      const auto b = static_cast<size_t>(row);
      if (data.labels[b] < 0) continue;
      std::vector<double> weight(count), weight_error(count);
      double mass = 0;
      bool own_class = false;
      for (size_t k = 0; k < count; ++k) {
        const int64_t j = first + static_cast<int64_t>(k);
        if (data.center_labels[static_cast<size_t>(j)] == data.labels[b]) {
          own_class = true;
          weight[k] = c.with_target ? data.target_grad[b] : 0;
        } else if (is_valid(data, row, j) && data.lse[b] != -INFINITY) {
          double slope;
          const double q = std::exp(logit_of(c, data, row, cosine_of(c, data, row, j), slope) - data.lse[b]);
          const double steepest = c.modulated ? 2 * data.quad[b] + data.lin[b] : 1;
          const double logit_error =
              c.scale * steepest * (cosine_error + 0x1p-22) + std::fabs(static_cast<double>(data.lse[b])) * 0x1p-23;
          mass += q;
          weight[k] = data.grad_lse[b] * static_cast<double>(c.scale) * q * slope;
          // A q below 2^-126 is flushed to 0.
          weight_error[k] = std::fabs(weight[k]) * (2 * logit_error + 4 * cosine_error + 0x1p-20) +
                            std::fabs(data.grad_lse[b] * c.scale * slope) * 0x1p-126;
        }
        if (weight[k] != 0) weight_error[k] += std::fabs(weight[k]) * (u + sums) + tiny;
      }
      const bool has_target = c.target_logit != SweepCase::kNoTarget;
      const double total = 1 + (has_target ? std::exp(static_cast<double>(data.target_logit[b]) - data.lse[b]) : 0);
      const bool may_lack = !own_class && mass <= 1.001 * c.tolerance / static_cast<double>(plan.blocks) * total;
      for (size_t k = 0; k < count; ++k) {
        if (weight[k] == 0) continue;
        for (size_t d = 0; d < dim; ++d) {
          const double x = widen(c, data.embeddings[static_cast<size_t>(row * data.stride) + d]);
          sum[k * dim + d] += weight[k] * x;
          error[k * dim + d] += std::fabs(x) * (weight_error[k] + (may_lack ? std::fabs(weight[k]) : 0));
        }
      }
    }
    for (size_t k = 0; k < count; ++k) {
      const auto j = static_cast<size_t>(first) + k;
      const double s = data.center_labels[j] < 0 ? 0 : c.scaled ? data.center_scale[j] : 1;
      std::vector<double> unit(dim);
      for (size_t d = 0; c.scaled && s != 0 && d < dim; ++d)
        unit[d] = s * widen(c, data.centers[j * static_cast<size_t>(data.stride) + d]);
      double along = 0, along_error = 0;
      for (size_t d = 0; d < dim; ++d) {
        along += sum[k * dim + d] * unit[d];
        along_error += std::fabs(unit[d]) * (error[k * dim + d] + std::fabs(sum[k * dim + d]) * c.dim * 0x1p-24);
      }
      for (size_t d = 0; d < dim; ++d) {
        const double expected = s * (sum[k * dim + d] - along * unit[d]);
        const double bound = s * (error[k * dim + d] + std::fabs(unit[d]) * along_error +
                                  0x1p-22 * (std::fabs(sum[k * dim + d]) + std::fabs(along * unit[d])));
        const double got = widen(c, out[j * dim + d]);
        CHECK(std::fabs(got - expected) <= bound * (1 + u) + u * std::fabs(expected) + (half ? 0x1p-25 : 1e-38),
              "center %d column %d: %.9g, expected %.9g +- %.2g", int(j), int(d), got, expected, bound);
        CHECK(s != 0 || out[j * dim + d] == 0, "center %d is empty, gradient %g", int(j), got);
      }
    }
  }
}

}  // namespace attfc::testing
