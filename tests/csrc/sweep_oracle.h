// The sweep in plain float64 loops, with the error that each result may have: derived from the 16-bit rounding of
// p N' s, float32 rounding of cosines and logits, and the probability that the kernel says it left out.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/cuda/gpu/gpu.h"
#include "csrc/cuda/sweep.h"
#include "csrc/sweep_inputs.h"
#include "testing.h"

namespace attfc::testing {

// What a sweep is asked for, in host memory that plays the device's.
struct SweepCase {
  int64_t rows = 5, centers = 70;
  int dim = 128;
  Dtype dtype = Dtype::kBFloat16;
  float scale = 64, tolerance = 0;
  bool modulated = true, need_grad = true;
  bool scaled = false;    // raw centres and center_scale
  float length_log2 = 0;  // of a raw centre, within 3 of this
  enum { kNoTarget, kTarget, kFarAbove, kFarBelow } target_logit = kTarget;
  double spread = 0.35;  // cosines are about this far from 0; above 1: +-1
  int num_classes = 23;
  double empty_share = 0.2, ignored_share = 0.1;
  bool poison_empty = true;
  int multiprocessors = 1;  // 1: no splits
  int compute_capability = 80, shared_bytes = 163 << 10;
  int64_t pad = 8;  // elements between rows
  uint64_t data_seed = 1;
};

struct SweepData {
  std::vector<uint16_t> embeddings, centers;
  std::vector<int64_t> labels, center_labels;
  std::vector<float> center_scale, target_logit, threshold, quad, lin, constant;
  mutable std::vector<float> row_values;  // the table of these, as inputs_of() last made it
  int64_t stride;
};

struct SweepResult {
  std::vector<float> lse, max_cosine, omitted, grad, moments;
  std::vector<int64_t> hard_count;
};

inline double widen(const SweepCase& c, uint16_t bits) {
  return c.dtype == Dtype::kBFloat16 ? gpu::to_float(gpu::BFloat16{bits}) : gpu::to_float(gpu::Float16{bits});
}
inline uint16_t narrow(const SweepCase& c, float value) {
  const uint32_t both =
      c.dtype == Dtype::kBFloat16 ? gpu::pack<gpu::BFloat16>(value, 0) : gpu::pack<gpu::Float16>(value, 0);
  return static_cast<uint16_t>(both);
}

inline double cosine_of(const SweepCase& c, const SweepData& data, int64_t row, int64_t center) {
  double sum = 0;
  for (int d = 0; d < c.dim; ++d) {
    sum += widen(c, data.embeddings[static_cast<size_t>(row * data.stride + d)]) *
           widen(c, data.centers[static_cast<size_t>(center * data.stride + d)]);
  }
  return c.scaled ? sum * data.center_scale[static_cast<size_t>(center)] : sum;
}

inline bool is_valid(const SweepData& data, int64_t row, int64_t center) {
  const int64_t label = data.labels[static_cast<size_t>(row)], other = data.center_labels[static_cast<size_t>(center)];
  return label >= 0 && other >= 0 && label != other;
}

inline double logit_of(const SweepCase& c, const SweepData& data, int64_t row, int64_t center) {
  const auto b = static_cast<size_t>(row);
  const double cosine = cosine_of(c, data, row, center);
  if (!c.modulated || !(cosine > data.threshold[b])) return c.scale * cosine;
  return c.scale * ((data.quad[b] * cosine + data.lin[b]) * cosine + data.constant[b]);
}

// Gives each centre a length of its own, and center_scale its inverse; an empty slot's is NaN.
inline void lengthen_centers(const SweepCase& c, SweepData& data) {
  std::mt19937_64 random(c.data_seed + 1000);
  std::uniform_real_distribution<float> exponent(-3, 3);
  for (int64_t j = 0; j < c.centers; ++j) {
    const float length = std::exp2(c.length_log2 + exponent(random));
    double square = 0;
    for (int d = 0; d < c.dim; ++d) {
      uint16_t& element = data.centers[static_cast<size_t>(j * data.stride + d)];
      element = narrow(c, static_cast<float>(widen(c, element)) * length);
      square += widen(c, element) * widen(c, element);
    }
    const bool empty = data.center_labels[static_cast<size_t>(j)] < 0;
    data.center_scale.push_back(empty ? NAN : static_cast<float>(1 / std::sqrt(square)));
  }
  data.center_scale.shrink_to_fit();
}

inline SweepData make_data(const SweepCase& c) {
  std::mt19937_64 random(c.data_seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  SweepData data;
  data.stride = c.dim + c.pad;
  // A common direction of weight `spread` makes cosines near +-spread.
  std::vector<float> common(static_cast<size_t>(c.dim));
  for (float& v : common) v = normal(random);
  const auto fill = [&](std::vector<uint16_t>& out, int64_t count) {
    out.assign(static_cast<size_t>(count * data.stride), 0x7fff);  // padding is NaN
    for (int64_t row = 0; row < count; ++row) {
      std::vector<float> unit(static_cast<size_t>(c.dim));
      const float sign = uniform(random) < 0.5f ? -1.0f : 1.0f, own = c.spread > 1 ? 0.0f : 1.0f;
      const float weight = c.spread > 1 ? 1.0f : static_cast<float>(std::sqrt(c.spread / (1 - c.spread + 1e-9)));
      double norm = 0;
      for (size_t d = 0; d < unit.size(); ++d) {
        unit[d] = sign * weight * common[d] + own * normal(random);
        norm += static_cast<double>(unit[d]) * unit[d];
      }
      for (size_t d = 0; d < unit.size(); ++d) {
        out[static_cast<size_t>(row * data.stride) + d] = narrow(c, unit[d] / static_cast<float>(std::sqrt(norm)));
      }
    }
  };
  fill(data.embeddings, c.rows);
  fill(data.centers, c.centers);
  std::uniform_int_distribution<int64_t> label(0, c.num_classes - 1);
  for (int64_t row = 0; row < c.rows; ++row)
    data.labels.push_back(uniform(random) < c.ignored_share ? -1 : label(random));
  for (int64_t j = 0; j < c.centers; ++j) {
    const bool empty = uniform(random) < c.empty_share;
    data.center_labels.push_back(empty ? -1 : label(random));
    for (int d = 0; empty && c.poison_empty && d < c.dim; ++d)
      data.centers[static_cast<size_t>(j * data.stride + d)] = 0x7fff;
  }
  if (c.scaled) lengthen_centers(c, data);
  for (int64_t row = 0; row < c.rows; ++row) {
    // A threshold in a gap between two cosines: no rounding decides who is hard.
    double low = -1.5, high = 1.5;
    for (int64_t j = 0; j < c.centers; ++j) {
      if (!is_valid(data, row, j)) continue;
      const double cosine = cosine_of(c, data, row, j);
      if (cosine < 0.2 && cosine > low) low = cosine;
      if (cosine >= 0.2 && cosine < high) high = cosine;
    }
    data.threshold.push_back(static_cast<float>((low + high) / 2));
    data.quad.push_back(0.5f + 0.5f * uniform(random));
    data.lin.push_back(1.0f + 0.5f * uniform(random));
    data.constant.push_back(0.1f * uniform(random));
    const float target = c.scale * (0.3f + 0.4f * uniform(random));
    data.target_logit.push_back(c.target_logit == SweepCase::kFarAbove   ? target + 60
                                : c.target_logit == SweepCase::kFarBelow ? target - 2000
                                                                         : target);
  }
  // An ignored row's numbers may be anything.
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto b = static_cast<size_t>(row);
    if (data.labels[b] >= 0) continue;
    for (int d = 0; d < c.dim; ++d) data.embeddings[static_cast<size_t>(row * data.stride + d)] = 0x7fff;
    for (auto* each : {&data.target_logit, &data.threshold, &data.quad, &data.lin, &data.constant}) (*each)[b] = NAN;
  }
  // Of exact size, so that AddressSanitizer sees the end.
  data.labels.shrink_to_fit();
  data.center_labels.shrink_to_fit();
  for (auto* each : {&data.target_logit, &data.threshold, &data.quad, &data.lin, &data.constant}) each->shrink_to_fit();
  return data;
}

// Two clusters of centres: the first `near` by the embeddings, the others opposite: their tiles carry no probability at
// scale 64.
inline SweepData clustered(const SweepCase& c, int64_t near) {
  SweepData data = make_data(c);
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal;
  const auto write = [&](std::vector<uint16_t>& out, int64_t row, float sign, float noise) {
    std::vector<float> unit(static_cast<size_t>(c.dim));
    double norm = 0;
    for (size_t d = 0; d < unit.size(); ++d) {
      unit[d] = sign * (d % 3 == 0 ? 1.0f : -0.5f) + noise * normal(random);
      norm += static_cast<double>(unit[d]) * unit[d];
    }
    for (size_t d = 0; d < unit.size(); ++d) {
      out[static_cast<size_t>(row * data.stride) + d] = narrow(c, unit[d] / static_cast<float>(std::sqrt(norm)));
    }
  };
  for (int64_t row = 0; row < c.rows; ++row) write(data.embeddings, row, 1, 0.5f);
  for (int64_t j = 0; j < c.centers; ++j) write(data.centers, j, j < near ? 1.0f : -1.0f, 0.7f);
  return data;
}

template <class T>
const T* data_or_null(const std::vector<T>& v, bool wanted) {
  return wanted ? v.data() : nullptr;
}

// The operands, in memory of exact size, so that AddressSanitizer sees the end.
inline SweepInputs inputs_of(const SweepCase& c, const SweepData& data) {
  const bool has_target = c.target_logit != SweepCase::kNoTarget;
  SweepInputs inputs{};
  inputs.dtype = c.dtype;
  inputs.num_rows = c.rows;
  inputs.num_centers = c.centers;
  inputs.dim = c.dim;
  inputs.embeddings = data.embeddings.data();
  inputs.centers = data.centers.data();
  inputs.embedding_stride = inputs.center_stride = data.stride;
  inputs.labels = data.labels.data();
  inputs.center_labels = data.center_labels.data();
  inputs.center_scale = data_or_null(data.center_scale, c.scaled);
  inputs.num_row_values = c.modulated ? kNumRowValues : has_target ? 1 : 0;
  std::vector<float> table;
  const auto add = [&](const std::vector<float>& row) { table.insert(table.end(), row.begin(), row.end()); };
  if (inputs.num_row_values > 0) {
    add(has_target ? data.target_logit : std::vector<float>(static_cast<size_t>(c.rows), -INFINITY));
  }
  if (c.modulated) {
    for (const auto* row : {&data.threshold, &data.quad, &data.lin, &data.constant}) add(*row);
  }
  data.row_values.assign(table.begin(), table.end());
  data.row_values.shrink_to_fit();
  inputs.row_values = data.row_values.data();
  return inputs;
}

inline void aim_at(cuda::SweepArguments& arguments, SweepResult& result) {
  arguments.lse = result.lse.data();
  arguments.hard_count = result.hard_count.data();
  arguments.max_cosine = result.max_cosine.data();
  arguments.omitted_mass = result.omitted.data();
  arguments.unit_grad = result.grad.empty() ? nullptr : result.grad.data();
  arguments.moments = result.moments.data();
}

inline SweepResult run_sweep(const SweepCase& c, const SweepData& data) {
  const auto rows = static_cast<size_t>(c.rows);
  SweepResult result;
  for (std::vector<float>* each : {&result.lse, &result.max_cosine, &result.omitted}) each->assign(rows, NAN);
  result.moments.assign(rows * 3, NAN);
  result.hard_count.assign(rows, -7);
  result.grad.assign(c.need_grad ? rows * static_cast<size_t>(c.dim) : 0, NAN);
  cuda::SweepArguments arguments{};
  static_cast<SweepInputs&>(arguments) = inputs_of(c, data);
  arguments.scale = c.scale;
  arguments.grad_tolerance = c.tolerance;
  arguments.need_grad = c.need_grad;
  aim_at(arguments, result);
  const cuda::DeviceLimits device{c.compute_capability, c.shared_bytes, c.multiprocessors};
  const char* reason = cuda::why_not(device, arguments);
  CHECK(reason == nullptr, "%s", reason);
  const cuda::SweepPlan plan = cuda::plan_sweep(device, arguments);
  CHECK(c.multiprocessors == 1 || plan.splits > 1, "the case is meant to split, got %d", plan.splits);
  std::vector<float> workspace(plan.workspace_bytes / sizeof(float), NAN);
  const char* error = cuda::launch_sweep(plan, arguments, workspace.data(), nullptr);
  CHECK(error == nullptr, "%s", error);
  return result;
}

// Checks every number of `result`.
inline void check_against_oracle(const SweepCase& c, const SweepData& data, const SweepResult& result) {
  const double u = c.dtype == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;  // half a unit in the last place
  const double cosine_error = c.dim / 16 * 0x1p-24 * 2 + (c.scaled ? 0x1p-24 : 0);
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto b = static_cast<size_t>(row);
    std::vector<double> logits, cosines, slopes;
    std::vector<int64_t> who;
    double largest = -INFINITY, max_cosine = -INFINITY, steepest = 1, widest = 1;
    int64_t hard_count = 0;
    for (int64_t j = 0; j < c.centers; ++j) {
      if (!is_valid(data, row, j)) continue;
      const double cosine = cosine_of(c, data, row, j);
      const bool hard = c.modulated && cosine > data.threshold[b];
      const double bent = (data.quad[b] * cosine + data.lin[b]) * cosine + data.constant[b];
      logits.push_back(static_cast<double>(c.scale) * (hard ? bent : cosine));
      cosines.push_back(cosine);
      slopes.push_back(hard ? 2.0 * data.quad[b] * cosine + data.lin[b] : 1.0);
      steepest = std::max(steepest, std::fabs(slopes.back()));
      who.push_back(hard ? j : ~j);
      hard_count += hard ? 1 : 0;
      largest = std::max(largest, logits.back());
      max_cosine = std::max(max_cosine, cosine);
      if (c.scaled) widest = std::max(widest, static_cast<double>(data.center_scale[static_cast<size_t>(j)]));
    }
    CHECK(result.hard_count[b] == hard_count, "row %d: %lld, expected %lld", int(row),
          static_cast<long long>(result.hard_count[b]), static_cast<long long>(hard_count));
    if (who.empty()) {
      CHECK(result.lse[b] == -INFINITY && result.max_cosine[b] == -INFINITY && result.omitted[b] == 0,
            "row %d has no negative: %g %g %g", int(row), result.lse[b], result.max_cosine[b], result.omitted[b]);
    } else {
      CHECK(std::fabs(result.max_cosine[b] - max_cosine) <= cosine_error, "row %d: %.9g, expected %.9g", int(row),
            result.max_cosine[b], max_cosine);
    }
    double sum = 0;
    for (double logit : logits) sum += std::exp(logit - largest);
    const double lse = who.empty() ? -INFINITY : largest + std::log(sum);
    // The logit's rounding, scale N(c), and that of R + log(sum).
    const double logit_error = c.scale * steepest * (cosine_error + 0x1p-22) + 0x1p-22;
    const double error = logit_error + std::fabs(lse) * 0x1p-23;
    CHECK(who.empty() || std::fabs(result.lse[b] - lse) <= error, "row %d: lse %.9g, expected %.9g +- %.2g", int(row),
          result.lse[b], lse, error);

    // Left out: at most the tolerance's share of the target's and the negatives' mass.
    const double target =
        c.target_logit == SweepCase::kNoTarget ? -INFINITY : static_cast<double>(data.target_logit[b]);
    const double total = std::exp(target - lse) + 1;  // in units of the negatives' mass
    CHECK(result.omitted[b] >= 0 && result.omitted[b] <= c.tolerance * 1.0001, "row %d: omitted %g", int(row),
          result.omitted[b]);
    const double left_out = who.empty() || result.omitted[b] == 0 ? 0 : result.omitted[b] * total * 1.001;

    double moments[3] = {};
    std::vector<double> grad(static_cast<size_t>(c.dim)), size(grad.size()), largest_entry(grad.size()),
        all(grad.size());
    for (size_t k = 0; k < who.size(); ++k) {
      const double q = std::exp(logits[k] - lse);
      const bool hard = who[k] >= 0;
      const int64_t j = hard ? who[k] : ~who[k];
      if (hard) moments[0] += q * cosines[k] * cosines[k], moments[1] += q * cosines[k], moments[2] += q;
      for (size_t d = 0; c.need_grad && d < grad.size(); ++d) {
        const double raw = widen(c, data.centers[static_cast<size_t>(j * data.stride) + d]);
        const double entry = c.scaled ? raw * data.center_scale[static_cast<size_t>(j)] : raw;
        grad[d] += q * slopes[k] * entry;
        size[d] += q * std::fabs(slopes[k] * entry);
        all[d] += std::fabs(raw);
        largest_entry[d] = std::max(largest_entry[d], std::fabs(slopes[k] * entry));
      }
    }
    for (size_t m = 0; m < 3; ++m) {
      const double bound = c.scale * moments[2] * (2 * logit_error + 4 * cosine_error + 0x1p-21) + 1e-30;
      CHECK(std::fabs(result.moments[3 * b + m] - c.scale * moments[m]) <= bound,
            "row %d moment %d: %.9g, expected %.9g", int(row), int(m), result.moments[3 * b + m], c.scale * moments[m]);
    }
    const double tiny = c.dtype == Dtype::kFloat16 && !who.empty()
                            ? widest * 0x1p-25 / 128 * (2 * std::fabs(data.quad[b]) + std::fabs(data.lin[b]) + 1)
                            : 0;
    for (size_t d = 0; c.need_grad && d < grad.size(); ++d) {
      const double got = result.grad[b * grad.size() + d];
      const double bound =
          c.scale * (size[d] * (u + 2 * logit_error + 0x1p-20) + tiny * all[d] + left_out * largest_entry[d]) + 1e-30;
      CHECK(std::fabs(got - c.scale * grad[d]) <= bound, "row %d column %d: gradient %.9g, expected %.9g +- %.2g",
            int(row), int(d), got, c.scale * grad[d], bound);
    }
  }
}

}  // namespace attfc::testing
